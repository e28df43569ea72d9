"""The gate's input over all clients: sums by task, and what standardises it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.mixture_arrays import Arrays
from common.wire.preparation import PrepareReply

Float = NDArray[np.float64]

# Features that hardly vary must not blow up.
SMALLEST_SCALE = 1e-4


@dataclass(frozen=True)
class GateStatistics:
    """Sums of the gate's input over all clients: `counts` `[tasks]`, `sums` and `squares` `[tasks, hidden]`."""

    tasks: tuple[str, ...]  # sorted by domain, then name
    domains: tuple[str, ...]  # of each task
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
    hidden = replies[0].gate_input_size
    total = GateStatistics(
        tasks=tuple(tasks),
        domains=tuple(domains[task] for task in tasks),
        counts=np.zeros(len(tasks)),
        sums=np.zeros((len(tasks), hidden)),
        squares=np.zeros((len(tasks), hidden)),
    )
    for reply in replies:
        rows = [row[task] for task in reply.tasks]
        total.counts[rows] += reply.counts
        total.sums[rows] += reply.sums
        total.squares[rows] += reply.squares
    return total


def standardise(arrays: Arrays, statistics: GateStatistics) -> Arrays:
    """Return the mixture with the gate's fixed statistics set."""
    return arrays | {
        "gate.mean": statistics.mean.astype(np.float32),
        "gate.scale": statistics.scale.astype(np.float32),
    }
