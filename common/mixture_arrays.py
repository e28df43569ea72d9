"""A mixture's values as they travel: named float32 arrays, and their first values. Imports no torch."""

import numpy as np
from numpy.typing import NDArray

from common.mixture_spec import MixtureSpec

Array = NDArray[np.float32]
Arrays = dict[str, Array]

# Where no configuration says it.
PROMPT_SCALE = 0.3


def initial_arrays(spec: MixtureSpec, rng: np.random.Generator, prompt_scale: float = PROMPT_SCALE) -> Arrays:
    """Draw a mixture's first values.

    Prompts are normal with the standard deviation `prompt_scale`, keys with that times the root of their size, by which
    their products with queries are divided. Weights are normal, statistics and the task gate's query the identity,
    expert keys orthonormal as far as they fit, biases zero; and so is the output of an input gate that only serves
    unknown tasks: it weighs evenly until it is pre-trained.
    """
    arrays: Arrays = {}
    for name, dimensions in spec.all().items():
        if name.startswith("pool.keys."):
            values = rng.normal(0.0, prompt_scale * dimensions[-1] ** 0.5, dimensions)
        elif name.startswith("pool."):
            values = rng.normal(0.0, prompt_scale, dimensions)
        elif name == "gate.query.weight":
            values = np.eye(dimensions[0])
        elif name == "gate.expert_keys":
            values = _directions(dimensions, rng)
        elif name == "gate.output.weight" and spec.gate == "task":
            values = np.zeros(dimensions)
        elif name.endswith(".weight") or name == "gate.task_embeddings":
            values = rng.normal(0.0, dimensions[-1] ** -0.5, dimensions)
        elif name == "gate.scale":
            values = np.ones(dimensions)
        else:
            values = np.zeros(dimensions)
        arrays[name] = values.astype(np.float32)
    return arrays


def _directions(dimensions: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw unit vectors, orthogonal to each other when there are not more than dimensions."""
    drawn = rng.normal(size=dimensions)
    if dimensions[0] <= dimensions[1]:
        drawn = np.linalg.qr(drawn.T)[0].T
    unit: NDArray[np.float64] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit
