"""Merging updates: a running mean, expert by expert, weighted by use."""

import numpy as np
from numpy.typing import NDArray

from common.mixture_arrays import Arrays
from common.mixture_spec import is_expertwise, is_taskwise
from common.wire.rounds import TrainReply

# An expert that got less mass from all clients was used by nobody; dividing by it would lose its digits.
SMALLEST_WEIGHT = 1e-12


class WeightedMean:
    """The mean of updates in which an expert counts by the gate mass that a client's examples gave it.

    The mean over all clients of expert k's values v is sum_c(u[c, k] v[c, k]) / sum_c(u[c, k]), with u = examples x
    mean gate weight; so a client that never used an expert cannot pull it. Rows that belong to a task count by the
    client's examples of that task, arrays that belong to neither by all its examples; and so does everything if not
    `by_use`, which is FedAvg. Keeps one float64 accumulator, whatever the number of updates.
    """

    def __init__(self, by_use: bool = True) -> None:
        self._by_use = by_use
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._usage: NDArray[np.float64] | float = 0.0
        self._task_examples: NDArray[np.float64] | float = 0.0
        self._num_examples = 0

    def add(self, update: TrainReply) -> None:
        """Take in a checked update."""
        for name, array in update.arrays.items():
            weighted = array.astype(np.float64) * self._weight(
                name, array.shape, update.usage, update.task_examples, update.num_examples
            )
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._usage = self._usage + update.usage
        self._task_examples = self._task_examples + update.task_examples
        self._num_examples += update.num_examples

    @property
    def usage(self) -> NDArray[np.float64]:
        """Gate mass of each expert over all updates, `[experts]`."""
        return np.asarray(self._usage)

    def merge_into(self, arrays: Arrays) -> Arrays:
        """Return `arrays` with the mean in place of what was updated; what nobody used stays as it is."""
        merged = dict(arrays)
        for name, weighted in self._sums.items():
            task_examples = np.asarray(self._task_examples)
            weight = self._weight(name, weighted.shape, self.usage, task_examples, self._num_examples)
            weight = np.broadcast_to(weight, weighted.shape)
            mean = np.divide(weighted, weight, out=arrays[name].astype(np.float64), where=weight > SMALLEST_WEIGHT)
            merged[name] = mean.astype(np.float32)
        return merged

    def _weight(
        self,
        name: str,
        shape: tuple[int, ...],
        usage: NDArray[np.float64],
        task_examples: NDArray[np.float64],
        num_examples: int,
    ) -> NDArray[np.float64]:
        """Return an array's weights, to multiply it with; of the gate's rows there is none for the shared expert."""
        if self._by_use and is_expertwise(name):
            return usage[: shape[0]].reshape(-1, *[1] * (len(shape) - 1))
        if self._by_use and is_taskwise(name):
            return task_examples.reshape(-1, *[1] * (len(shape) - 1))
        return np.asarray(float(num_examples))
