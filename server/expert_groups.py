"""Which expert a task starts with: one of its own, or, with more tasks than experts, one that it shares."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.gate_statistics import Float


def dealt(labels: Sequence[str], num_experts: int) -> NDArray[np.int64]:
    """Assign tasks to experts, `[tasks]`, in turn by their labels: their names, or their domains.

    Tasks come sorted by domain, so in turn by name those of one domain, which look alike, go to different experts, and
    an expert's tasks look different: the frozen backbone tells them apart by itself. In turn by domain, an expert gets
    all tasks of its domains.
    """
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] % num_experts for label in labels])


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
