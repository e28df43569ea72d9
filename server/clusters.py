"""Federated k-means on the gate's input: groups of inputs, without any label."""

from collections.abc import Callable

import numpy as np

from common.wire.preparation import ClusterReply
from server.gate_statistics import Float

MAX_STEPS = 20
# Stop when a step takes off less than this share of the squared distances.
SMALLEST_GAIN = 1e-3
# Where an empty cluster goes on, around the centre of the fullest one.
JITTER = 0.1


def k_means(
    num_clusters: int,
    moments: Float,
    num_examples: float,
    ask: Callable[[Float], list[ClusterReply]],
    rng: np.random.Generator,
) -> tuple[Float, Float]:
    """Return centres `[clusters, features]` and counts `[clusters]` of all clients' inputs (Lloyd's algorithm).

    `ask(centres)` has every client assign its inputs and add them up. The first centres are drawn from a normal with
    the clients' second moments `[features, features]`, around 0, as the inputs are standardised.
    """
    values, vectors = np.linalg.eigh(moments / num_examples)
    deviations = np.sqrt(np.maximum(values, 0.0))
    centres: Float = (rng.standard_normal((num_clusters, len(moments))) * deviations) @ vectors.T
    counts = np.zeros(num_clusters)
    last = np.inf
    for _ in range(MAX_STEPS):
        replies = ask(centres)
        counts = np.sum([reply.counts for reply in replies], axis=0)
        sums = np.sum([reply.sums for reply in replies], axis=0)
        inertia = sum(reply.inertia for reply in replies)
        used = counts > 0
        centres[used] = sums[used] / counts[used, None]
        fullest = int(counts.argmax())
        drawn = rng.standard_normal((int((~used).sum()), len(moments))) * deviations
        centres[~used] = centres[fullest] + JITTER * drawn @ vectors.T
        if used.all() and inertia > (1 - SMALLEST_GAIN) * last:
            break
        last = inertia
    return centres, np.maximum(counts, 1.0)
