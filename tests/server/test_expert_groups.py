"""Which tasks share an expert: in turn, or like ones together, against merges tried one by one."""

from itertools import combinations

import numpy as np
import pytest

from server.expert_groups import alike, dealt


def squares_within(groups, points):
    return sum(((points[group] - points[group].mean(axis=0)) ** 2).sum() for group in groups)


def merged_one_by_one(points, most_groups):
    groups = [[number] for number in range(len(points))]
    while len(groups) > most_groups:
        pairs = list(combinations(range(len(groups)), 2))
        tried = [
            [group for number, group in enumerate(groups) if number not in pair] + [groups[pair[0]] + groups[pair[1]]]
            for pair in pairs
        ]
        groups = min(tried, key=lambda split: squares_within(split, points))
    return {frozenset(group) for group in groups}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most_groups", [1, 3, 6])
def test_groups_are_those_of_merges_tried_one_by_one(seed, most_groups):
    points = np.random.default_rng(seed).normal(size=(9, 3))
    found = alike(points, most_groups)
    groups = {frozenset(np.flatnonzero(found == number).tolist()) for number in range(most_groups)}
    assert groups == merged_one_by_one(points, most_groups)
    firsts = [found.tolist().index(number) for number in range(most_groups)]
    assert firsts == sorted(firsts)


def test_as_many_experts_as_tasks_are_one_each():
    points = np.random.default_rng(0).normal(size=(5, 3))
    for most_groups in (5, 8):
        assert alike(points, most_groups).tolist() == [0, 1, 2, 3, 4]


def test_tasks_are_dealt_in_turn_and_a_domain_keeps_together():
    labels = ["x", "x", "y", "z", "z"]
    assert dealt(labels, 3).tolist() == [0, 0, 1, 2, 2]
    assert dealt(labels, 2).tolist() == [0, 0, 1, 0, 0]
    assert dealt(list("abcde"), 2).tolist() == [0, 1, 0, 1, 0]
    assert dealt(list("ab"), 3).tolist() == [0, 1]
