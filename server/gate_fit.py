"""Pre-training of the gate, before round 1, on clients' sums: it gives an expert one meaning everywhere."""

import numpy as np
from numpy.typing import NDArray

from common.mixture_arrays import Arrays
from server.gate_statistics import SMALLEST_SCALE, Float

# Chosen on the built-in skills' validation split by the gate's accuracy: docs/log.md.
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 1e-2
# The fit's inputs spread wider than the clients', as instructions will come that nobody trained on.
SPREAD = 1.5
# Share of an even spread over all features: keeps a covariance of few examples invertible.
SHRINKAGE = 0.01
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
# How far the task gate's logit of a task's expert is above the others': 0.95 of the weight, with eight experts.
TASK_MARGIN = 5.0


def fit_input_gate(
    arrays: Arrays,
    centres: Float,
    counts: Float,
    experts: NDArray[np.int64],
    moments: Float,
    projection: Float,
    temperature: float,
    rng: np.random.Generator,
) -> Arrays:
    """Return the mixture with an input gate fitted to send each group of inputs to its expert.

    Groups are tasks or clusters: their means `centres` `[groups, features]` and `counts` `[groups]`, in the features of
    the standardised inputs under `projection` `[features, hidden]`, and `experts` `[groups]`. Only sums are known of
    the inputs, so the fit draws them: a group's inputs as a normal around its mean, with the covariance within groups
    that all share, groups equally often. The covariance comes from `moments`, the clients' summed second moments
    `[features, features]`. Adam on the cross entropy of the gate of common.mixture.Gate, its rate falling to 0.
    """
    factor = SPREAD * _root(covariance_within(centres, counts, moments))
    names = ("gate.hidden.weight", "gate.hidden.bias", "gate.output.weight", "gate.output.bias")
    gate = {name: arrays[name].astype(np.float64) for name in names}
    gate["gate.hidden.weight"] = gate["gate.hidden.weight"] @ projection.T
    first = {name: np.zeros_like(value) for name, value in gate.items()}
    second = {name: np.zeros_like(value) for name, value in gate.items()}
    for step in range(1, NUM_STEPS + 1):
        groups = rng.integers(len(experts), size=BATCH_SIZE)
        inputs = centres[groups] + rng.standard_normal((BATCH_SIZE, len(factor))) @ factor.T
        _, gradients = gate_loss(gate, inputs, experts[groups], temperature)
        rate = LEARNING_RATE * (1 - step / NUM_STEPS)
        for name, gradient in gradients.items():
            first[name] += (1 - ADAM_BETAS[0]) * (gradient - first[name])
            second[name] += (1 - ADAM_BETAS[1]) * (gradient**2 - second[name])
            mean = first[name] / (1 - ADAM_BETAS[0] ** step)
            gate[name] -= rate * mean / (np.sqrt(second[name] / (1 - ADAM_BETAS[1] ** step)) + ADAM_EPSILON)
    gate["gate.hidden.weight"] = gate["gate.hidden.weight"] @ projection
    return arrays | {name: value.astype(np.float32) for name, value in gate.items()}


def fit_task_gate(arrays: Arrays, rows: NDArray[np.int64], experts: NDArray[np.int64]) -> Arrays:
    """Return the mixture with task embeddings that point at the keys of their experts; the query is the identity.

    `rows` are the tasks' rows among the embeddings, `experts` their experts.
    """
    embeddings = arrays["gate.task_embeddings"].copy()
    embeddings[rows] = TASK_MARGIN * arrays["gate.expert_keys"][experts]
    return arrays | {"gate.task_embeddings": embeddings}


def _root(covariance: Float) -> Float:
    """Return a matrix whose product with its transpose is the covariance; what a lying client made negative is 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Float = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def covariance_within(centres: Float, counts: Float, moments: Float) -> Float:
    """Return the covariance around the groups' means that all groups share, `[features, features]`, slightly shrunk."""
    within = (moments - (centres * counts[:, None]).T @ centres) / counts.sum()
    size = len(within)
    floor = max(np.trace(within) / size, SMALLEST_SCALE**2)
    shrunk: Float = (1 - SHRINKAGE) * within + SHRINKAGE * floor * np.eye(size)
    return shrunk


def gate_loss(
    gate: dict[str, Float], inputs: Float, targets: NDArray[np.int64], temperature: float
) -> tuple[float, dict[str, Float]]:
    """Return the mean cross entropy of standardised inputs `[batch, hidden]`, and its gradients by array."""
    batch = np.arange(len(inputs))
    hidden = np.tanh(inputs @ gate["gate.hidden.weight"].T + gate["gate.hidden.bias"])
    logits = (hidden @ gate["gate.output.weight"].T + gate["gate.output.bias"]) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    weights /= weights.sum(axis=1, keepdims=True)
    loss = -np.log(np.maximum(weights[batch, targets], 1e-300)).mean()
    to_logits = weights.copy()
    to_logits[batch, targets] -= 1
    to_logits /= len(inputs) * temperature
    to_hidden = (to_logits @ gate["gate.output.weight"]) * (1 - hidden**2)
    return float(loss), {
        "gate.hidden.weight": to_hidden.T @ inputs,
        "gate.hidden.bias": to_hidden.sum(axis=0),
        "gate.output.weight": to_logits.T @ hidden,
        "gate.output.bias": to_logits.sum(axis=0),
    }
