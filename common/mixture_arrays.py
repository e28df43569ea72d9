"""The mixture as it travels: named float32 arrays, their shapes and their first values. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Arrays = dict[str, Array]

# Standardise the gate's input; set before round 1, never trained, so they travel down only.
GATE_STATISTICS = ("gate.mean", "gate.scale")

# Small first values: at the start the prompts should hardly disturb the backbone. Keys are scaled with the square root
# of their size, as the query-key product is divided by it.
INITIAL_STD = 0.02


@dataclass(frozen=True)
class MixtureShape:
    """What fixes the shapes of a mixture.

    `kv_shapes` maps each layer from the injection layer on to (key/value heads, key size, value size).
    """

    num_experts: int
    tokens_per_expert: int
    gate_hidden_size: int
    hidden_size: int
    kv_shapes: Mapping[int, tuple[int, int, int]]

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every trained array, pool first: what a client sends back."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (kv_heads, key_size, value_size) in sorted(self.kv_shapes.items()):
            shapes[f"pool.keys.{layer}"] = (self.num_experts, self.tokens_per_expert, kv_heads, key_size)
            shapes[f"pool.values.{layer}"] = (self.num_experts, self.tokens_per_expert, kv_heads, value_size)
        if self.num_experts > 1:
            shapes["gate.hidden.weight"] = (self.gate_hidden_size, self.hidden_size)
            shapes["gate.hidden.bias"] = (self.gate_hidden_size,)
            shapes["gate.output.weight"] = (self.num_experts, self.gate_hidden_size)
            shapes["gate.output.bias"] = (self.num_experts,)
        return shapes

    def all(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every array of the mixture: what the server sends."""
        statistics = GATE_STATISTICS if self.num_experts > 1 else ()
        return self.trainable() | dict.fromkeys(statistics, (self.hidden_size,))


def is_expertwise(name: str) -> bool:
    """Say whether an array's first axis counts experts."""
    return name.startswith(("pool.", "gate.output."))


def initial_arrays(shape: MixtureShape, rng: np.random.Generator) -> Arrays:
    """Draw a mixture's first values: normal keys, values and gate weights, identity statistics."""
    arrays: Arrays = {}
    for name, dimensions in shape.all().items():
        if name.startswith("pool.keys."):
            values = rng.normal(0.0, INITIAL_STD * dimensions[-1] ** 0.5, dimensions)
        elif name.startswith("pool.values."):
            values = rng.normal(0.0, INITIAL_STD, dimensions)
        elif name.endswith(".weight"):
            values = rng.normal(0.0, dimensions[-1] ** -0.5, dimensions)
        elif name == "gate.scale":
            values = np.ones(dimensions)
        else:
            values = np.zeros(dimensions)
        arrays[name] = values.astype(np.float32)
    return arrays


def num_parameters(shape: MixtureShape) -> int:
    """Count the trained parameters."""
    return sum(int(np.prod(dimensions)) for dimensions in shape.trainable().values())
