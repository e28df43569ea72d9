"""Federated k-means gives what Lloyd's algorithm gives on pooled inputs, and recovers from empty clusters."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from client.gate_statistics import sums_by_cluster
from common.wire.preparation import ClusterReply
from server import clusters
from server.clusters import k_means

Float = NDArray[np.float64]
NUM_CLUSTERS, FEATURES = 4, 3
CENTRES = 10.0 * np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [-1.0, -1.0, -1.0]])


def clients_inputs(seed: int = 0) -> list[Float]:
    """Draw three clients' inputs around well separated centres, none with all of them alike, of mean about 0."""
    rng = np.random.default_rng(seed)
    counts = [[9, 2, 0, 4], [0, 7, 5, 1], [3, 3, 7, 7]]
    return [
        np.concatenate([centre + rng.normal(size=(n, FEATURES)) for centre, n in zip(CENTRES, of_client, strict=True)])
        for of_client in counts
    ]


class Asked:
    """Clients that answer, and remember what they were asked."""

    def __init__(self, inputs: list[Float]) -> None:
        self.inputs = inputs
        self.centres: list[Float] = []

    def __call__(self, centres: Float) -> list[ClusterReply]:
        self.centres.append(centres.copy())
        return [sums_by_cluster(own, centres) for own in self.inputs]


def run(asked: Asked, num_clusters: int = NUM_CLUSTERS, seed: int = 0) -> tuple[Float, Float]:
    pooled = np.concatenate(asked.inputs)
    return k_means(num_clusters, pooled.T @ pooled, float(len(pooled)), asked, np.random.default_rng(seed))


def lloyd(inputs: Float, centres: Float, steps: int) -> tuple[Float, list[int]]:
    """Plain Lloyd's algorithm: centres after so many steps, and how many inputs the last step assigned to each."""
    counts: list[int] = []
    for _ in range(steps):
        groups: list[list[Float]] = [[] for _ in centres]
        for x in inputs:
            groups[int(np.argmin([((x - centre) ** 2).sum() for centre in centres]))].append(x)
        centres = np.array([np.mean(group, axis=0) for group in groups])
        counts = [len(group) for group in groups]
    return centres, counts


def seed_without_empty_clusters() -> int:
    """Find a seed whose first centres all get inputs, so that no recovery is drawn."""
    for seed in range(200):
        asked = Asked(clients_inputs())
        run(asked, seed=seed)
        if all(min(np.sum([r.counts for r in asked(c)], axis=0)) > 0 for c in asked.centres[:]):
            return seed
    raise AssertionError("no such seed")


def test_federated_k_means_equals_lloyds_algorithm_on_pooled_inputs() -> None:
    asked = Asked(clients_inputs())
    centres, counts = run(asked, seed=seed_without_empty_clusters())
    assert 1 < len(asked.centres) < clusters.MAX_STEPS
    expected, expected_counts = lloyd(np.concatenate(asked.inputs), asked.centres[0], len(asked.centres))
    np.testing.assert_allclose(centres, expected, rtol=1e-12)
    assert counts.tolist() == expected_counts


@pytest.mark.parametrize("seed", range(5))
def test_every_cluster_is_used_in_the_end(seed: int) -> None:
    asked = Asked(clients_inputs())
    centres, counts = run(asked, seed=seed)
    assert np.isfinite(centres).all()
    assert (np.sum([reply.counts for reply in asked(centres)], axis=0) > 0).all()
    assert counts.sum() == sum(map(len, asked.inputs))


def test_an_empty_cluster_goes_on_near_the_fullest() -> None:
    """Two groups far apart on a line, and three clusters: one begins empty."""
    rng = np.random.default_rng(1)
    inputs = [np.concatenate([rng.normal(5, 0.1, (20, 1)), rng.normal(-5, 0.1, (12, 1))])]
    for seed in range(50):
        asked = Asked(inputs)
        _, counts = run(asked, 3, seed)
        first = np.sum([reply.counts for reply in asked(asked.centres[0])], axis=0)
        if (first == 0).sum() == 1 and first.max() == 20:
            empty = int(np.flatnonzero(first == 0)[0])
            # Within a few times the jitter, of a tenth of the deviation of 5, around the group of 20.
            assert abs(asked.centres[1][empty, 0] - 5) < 4 * clusters.JITTER * 5
            assert (counts > 0).all() and counts.sum() == 32
            return
    raise AssertionError("no seed begins with one empty cluster")


def test_it_is_deterministic() -> None:
    first, again, other = (run(Asked(clients_inputs()), seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_stops_when_a_step_gains_next_to_nothing() -> None:
    asked = Asked(clients_inputs())
    run(asked)
    inertia = [sum(reply.inertia for reply in asked(each)) for each in asked.centres[:]]
    gains = [1 - after / before for before, after in pairwise(inertia)]
    assert all(gain > clusters.SMALLEST_GAIN for gain in gains[:-1])
    assert 0 <= gains[-1] < clusters.SMALLEST_GAIN


def test_it_stops_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_STEPS", 2)
    asked = Asked(clients_inputs())
    run(asked)
    assert len(asked.centres) == 2


def test_clusters_that_nobody_ever_fills_count_one() -> None:
    """More clusters than distinct inputs: the fit that follows divides by the counts."""
    centres, counts = run(Asked([np.array([[1.0, 1.0], [-1.0, -1.0]])]), 5)
    assert np.isfinite(centres).all()
    assert (counts >= 1).all()
