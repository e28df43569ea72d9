"""Which expert a task starts with: one of its own, or, with more tasks than experts, one that like tasks share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def experts_of(labels: Sequence[str], centres: Float, counts: Float, num_experts: int) -> NDArray[np.int64]:
    """Assign tasks to experts, `[tasks]`, by their labels: their names, or their domains.

    Tasks of one label share an expert, and so do like labels where there are more of them than experts. `centres`
    `[tasks, features]` are the tasks' mean inputs, `counts` `[tasks]` how many there were.
    """
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    rows = np.array([numbers[label] for label in labels])
    is_of_label = (rows[None] == np.arange(len(numbers))[:, None]) * counts
    means = is_of_label @ centres / is_of_label.sum(axis=1, keepdims=True)
    experts: NDArray[np.int64] = alike(means, num_experts)[rows]
    return experts


def alike(points: Float, most_groups: int) -> NDArray[np.int64]:
    """Merge points `[points, features]` into groups; return each one's, numbered in the order of their first points.

    Ward's method (1963): of all pairs of groups, that one is merged next which adds least to the squared distances of
    points from their groups' means. Some 0.1 s for 200 points, and the cube of that for more.
    """
    groups = [[number] for number in range(len(points))]
    means, sizes = points.astype(np.float64), np.ones(len(points))
    while len(groups) > most_groups:
        distances = (means**2).sum(axis=1)[:, None] + (means**2).sum(axis=1) - 2 * means @ means.T
        added = distances * (sizes[:, None] * sizes / (sizes[:, None] + sizes))
        np.fill_diagonal(added, np.inf)
        kept, merged = sorted(np.unravel_index(added.argmin(), added.shape))
        both = sizes[kept] + sizes[merged]
        means[kept] = (means[kept] * sizes[kept] + means[merged] * sizes[merged]) / both
        sizes[kept] = both
        groups[kept] += groups.pop(merged)
        means, sizes = np.delete(means, merged, axis=0), np.delete(sizes, merged)
    found = np.empty(len(points), dtype=np.int64)
    for number, members in enumerate(groups):
        found[members] = number
    return found
