"""Passes: every text once, within the limit, and of the least cost, against all splits of some texts."""

from itertools import combinations, pairwise
from random import Random

import pytest

from common.passes import passes


def cost(split, lengths, overhead):
    return sum(len(part) * max(lengths[index] for index in part) + overhead for part in split)


def fits(split, lengths, most):
    return all(len(part) == 1 or len(part) * max(lengths[index] for index in part) <= most for part in split)


def splits_in_order(lengths):
    """Yield all splits of the texts in order of length: the best is among them."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for num_cuts in range(len(order)):
        for cuts in combinations(range(1, len(order)), num_cuts):
            edges = [0, *cuts, len(order)]
            yield [order[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("seed", range(20))
def test_the_split_is_the_best_of_all(seed):
    rng = Random(seed)
    lengths = [rng.choice((3, 10, 11, 40, 90)) for _ in range(rng.randint(1, 8))]
    most, overhead = rng.choice((1, 60, 120, 10_000)), rng.choice((0, 1, 25, 1000))
    split = passes(lengths, most, overhead)
    assert sorted(index for part in split for index in part) == list(range(len(lengths)))
    assert fits(split, lengths, most)
    allowed = [each for each in splits_in_order(lengths) if fits(each, lengths, most)]
    assert cost(split, lengths, overhead) == min(cost(each, lengths, overhead) for each in allowed)


def test_the_longest_come_first_so_that_too_little_memory_shows_at_once():
    split = passes([5, 50, 7, 500, 6], 10_000, 20)
    assert split == [[3], [1], [2, 4, 0]]


def test_no_texts_are_no_passes():
    assert passes([], 10, 1) == []
