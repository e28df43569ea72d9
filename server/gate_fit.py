"""Pre-training of the gate, before round 1, on the clients' sums by task: it gives an expert one meaning everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.mixture_arrays import Arrays, MixtureShape
from common.wire import PrepareReply

Float = NDArray[np.float64]

NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 400, 128, 3e-3
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
    arrays: Arrays, shape: MixtureShape, statistics: GateStatistics, temperature: float, rng: np.random.Generator
) -> Arrays:
    """Return the mixture with a gate fitted to send each task to its expert.

    Only sums are known of the inputs, so the fit draws them: a task's inputs as a normal with its mean and deviation
    per feature, tasks equally often. Adam on the cross entropy, the gate of common.mixture.Gate.
    """
    counts = statistics.counts[:, None]
    means = statistics.sums / counts
    deviations = np.sqrt(np.maximum(statistics.squares / counts - means**2, 0.0))
    centres = (means - statistics.mean) / statistics.scale
    spreads = deviations / statistics.scale
    targets = expert_of_task(len(statistics.tasks), shape.num_experts)
    names = [name for name in shape.trainable() if name.startswith("gate.")]
    gate = {name: arrays[name].astype(np.float64) for name in names}
    first = {name: np.zeros_like(value) for name, value in gate.items()}
    second = {name: np.zeros_like(value) for name, value in gate.items()}
    for step in range(1, NUM_STEPS + 1):
        tasks = rng.integers(len(targets), size=BATCH_SIZE)
        inputs = centres[tasks] + spreads[tasks] * rng.standard_normal((BATCH_SIZE, shape.hidden_size))
        _, gradients = gate_loss(gate, inputs, targets[tasks], temperature)
        for name, gradient in gradients.items():
            first[name] += (1 - ADAM_BETAS[0]) * (gradient - first[name])
            second[name] += (1 - ADAM_BETAS[1]) * (gradient**2 - second[name])
            mean = first[name] / (1 - ADAM_BETAS[0] ** step)
            deviation = np.sqrt(second[name] / (1 - ADAM_BETAS[1] ** step)) + ADAM_EPSILON
            gate[name] -= LEARNING_RATE * mean / deviation
    return arrays | {name: value.astype(np.float32) for name, value in gate.items()}


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
