"""Pre-training of the gate, before round 1, on the clients' sums by task: it gives an expert one meaning everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.mixture_arrays import Arrays, MixtureShape
from common.wire import PrepareReply

Float = NDArray[np.float64]

# Chosen on the built-in skills' validation split by the gate's accuracy: docs/log.md.
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 1e-2
# The fit's inputs spread wider than the clients', as instructions will come that nobody trained on.
SPREAD = 1.5
# Share of an even spread over all features: keeps a covariance of few examples invertible.
SHRINKAGE = 0.01
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8

# Features that hardly vary must not blow up.
SMALLEST_SCALE = 1e-4


@dataclass(frozen=True)
class GateStatistics:
    """Sums of the gate's input over all clients: `counts` `[tasks]`, `sums` and `squares` `[tasks, hidden]`."""

    tasks: tuple[str, ...]  # sorted by domain, then name
    counts: Float
    sums: Float
    squares: Float

    @property
    def mean(self) -> Float:
        """Mean of every feature, `[hidden]`."""
        mean: Float = self.sums.sum(axis=0) / self.counts.sum()
        return mean

    @property
    def scale(self) -> Float:
        """Standard deviation of every feature, `[hidden]`."""
        variance = self.squares.sum(axis=0) / self.counts.sum() - self.mean**2
        scale: Float = np.sqrt(np.maximum(variance, SMALLEST_SCALE**2))
        return scale


def sum_statistics(replies: Sequence[PrepareReply]) -> GateStatistics:
    """Add up the clients' statistics by task."""
    domains = {task: domain for reply in replies for task, domain in zip(reply.tasks, reply.domains, strict=True)}
    tasks = sorted(domains, key=lambda task: (domains[task], task))
    row = {task: index for index, task in enumerate(tasks)}
    hidden = replies[0].hidden_size
    total = GateStatistics(
        tuple(tasks), np.zeros(len(tasks)), np.zeros((len(tasks), hidden)), np.zeros((len(tasks), hidden))
    )
    for reply in replies:
        rows = [row[task] for task in reply.tasks]
        total.counts[rows] += reply.counts
        total.sums[rows] += reply.sums
        total.squares[rows] += reply.squares
    return total


def expert_of_task(num_tasks: int, num_experts: int) -> NDArray[np.int64]:
    """Assign tasks to experts in turn.

    Tasks come sorted by domain, so those of one domain, which look alike, go to different experts, and an expert's
    tasks look different: the frozen backbone tells them apart by itself.
    """
    return np.arange(num_tasks) % num_experts


def standardise(arrays: Arrays, statistics: GateStatistics) -> Arrays:
    """Return the mixture with the gate's fixed statistics set."""
    return arrays | {
        "gate.mean": statistics.mean.astype(np.float32),
        "gate.scale": statistics.scale.astype(np.float32),
    }


def fit_gate(
    arrays: Arrays,
    shape: MixtureShape,
    statistics: GateStatistics,
    moments: Float,
    projection: Float,
    temperature: float,
    rng: np.random.Generator,
) -> Arrays:
    """Return the mixture with a gate fitted to send each task to its expert.

    Only sums are known of the inputs, so the fit draws them: a task's inputs as a normal around the task's mean, with
    the covariance within tasks that all tasks share, tasks equally often. The covariance comes from `moments`, the
    clients' summed second moments `[features, features]` of the standardised inputs under `projection`
    `[features, hidden]`. Adam on the cross entropy of the gate of common.mixture.Gate, its rate falling to 0.
    """
    means = statistics.sums / statistics.counts[:, None]
    centres = ((means - arrays["gate.mean"]) / arrays["gate.scale"]) @ projection.T
    factor = SPREAD * _root(covariance_within_tasks(centres, statistics.counts, moments))
    targets = expert_of_task(len(statistics.tasks), shape.num_experts)
    gate = {name: arrays[name].astype(np.float64) for name in shape.trainable() if name.startswith("gate.")}
    gate["gate.hidden.weight"] = gate["gate.hidden.weight"] @ projection.T
    first = {name: np.zeros_like(value) for name, value in gate.items()}
    second = {name: np.zeros_like(value) for name, value in gate.items()}
    for step in range(1, NUM_STEPS + 1):
        tasks = rng.integers(len(targets), size=BATCH_SIZE)
        inputs = centres[tasks] + rng.standard_normal((BATCH_SIZE, len(factor))) @ factor.T
        _, gradients = gate_loss(gate, inputs, targets[tasks], temperature)
        rate = LEARNING_RATE * (1 - step / NUM_STEPS)
        for name, gradient in gradients.items():
            first[name] += (1 - ADAM_BETAS[0]) * (gradient - first[name])
            second[name] += (1 - ADAM_BETAS[1]) * (gradient**2 - second[name])
            mean = first[name] / (1 - ADAM_BETAS[0] ** step)
            gate[name] -= rate * mean / (np.sqrt(second[name] / (1 - ADAM_BETAS[1] ** step)) + ADAM_EPSILON)
    gate["gate.hidden.weight"] = gate["gate.hidden.weight"] @ projection
    return arrays | {name: value.astype(np.float32) for name, value in gate.items()}


def _root(covariance: Float) -> Float:
    """Return a matrix whose product with its transpose is the covariance; what a lying client made negative is 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: Float = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def covariance_within_tasks(centres: Float, counts: Float, moments: Float) -> Float:
    """Return the covariance around the tasks' means that all tasks share, `[features, features]`, slightly shrunk."""
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
