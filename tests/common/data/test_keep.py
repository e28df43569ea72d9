"""What is kept in one pass is what sorting everything would keep."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest

from common.data.bad_row import BadRowError
from common.data.keep import VALIDATION_SHARE, Keeper
from common.data.prompt_hash import digest, position
from common.example import Example


def examples(count, splits=("train", "test"), seed=0):
    rng = random.Random(seed)
    found = []
    for number in range(count):
        text = str(number // 3)  # every prompt thrice, with other answers
        split = splits[int(text) % len(splits)]
        found.append(Example(split, f"t{int(text) % 3}", "d", "", "do", text, f"o{number}"))
    rng.shuffle(found)
    return found


def sorted_out(given, limits):
    """Do the same the slow way: hold out, group, sort, cut."""
    if not any(example.split == "validation" for example in given):
        given = [
            replace(e, split="validation") if e.split == "train" and position(e.prompt) < VALIDATION_SHARE else e
            for e in given
        ]
    groups = defaultdict(list)
    for example in given:
        groups[example.task, example.split].append(example)
    return tuple(
        example
        for (_, split), group in sorted(groups.items(), key=lambda item: item[0])
        for example in sorted(group, key=lambda e: f"{digest(e.prompt):016x}")[: limits.get(split, 0)]
    )


def kept(given, limits):
    keeper = Keeper(limits)
    assert all(keeper.add(example, f"line {number}") for number, example in enumerate(given))
    return keeper.examples()


@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "validation"), ("validation", "test")])
@pytest.mark.parametrize(
    "limits",
    [
        {"train": 5, "test": 3},
        {"train": 5, "validation": 30},
        {"train": 300, "validation": 2},
        {"train": 0, "validation": 2},
        {"train": 9999, "test": 9999},
        {"test": 4},
    ],
)
def test_one_pass_keeps_what_sorting_keeps(splits, limits):
    for seed in range(3):
        given = examples(900, splits, seed)
        assert kept(given, limits) == sorted_out(given, limits)


def test_no_more_is_held_than_the_limits_ask_for():
    keeper = Keeper({"train": 5, "validation": 2})
    for example in examples(900):
        keeper.add(example, "")
    assert {key: len(heap) for key, heap in keeper._heaps.items() if heap} == {
        (f"t{task}", "train", held_out): 5 for task in range(3) for held_out in (False, True)
    }


def test_the_same_example_twice_is_kept_once():
    keeper = Keeper({"train": 9})
    first = Example("train", "t", "d", "", "do", "in", "out")
    again = [replace(first, domain="e", source="s"), replace(first, instruction="do\nin", input="")]
    assert keeper.add(first, "line 1")
    assert not any(keeper.add(example, "") for example in again)
    others = [replace(first, output="o"), replace(first, task="u"), replace(first, input="i")]
    assert all(keeper.add(example, "") for example in others)
    assert {*keeper.examples()} == {first, *others} or position(first.prompt) < VALIDATION_SHARE


def test_a_prompt_of_another_split_is_refused_and_not_kept():
    keeper = Keeper({"train": 9, "test": 9})
    example = Example("test", "t", "d", "", "do", "in", "out")
    keeper.add(example, "line 1")
    with pytest.raises(BadRowError, match=r"^line 2 has a prompt that stands in test and train"):
        keeper.add(replace(example, split="train", output="other"), "line 2")
    assert keeper.examples() == (example,)
