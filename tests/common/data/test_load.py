"""Examples from JSONL: what is read, how it is split and limited, and what is refused."""

import gzip
import json

import pytest

from common.data.load import load_examples, read_data
from common.example import Example


def row(**changes):
    return {"task": "sum", "instruction": "add", "input": "1 2", "output": "3", "split": "test"} | changes


def load(tmp_path, rows, *, train=1000, evaluation=1000, split="test", name="data.jsonl"):
    text = "\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    read_data.cache_clear()
    return load_examples(str(path), train, evaluation, split, seed=0)


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_rows_become_examples(tmp_path, name):
    rows = [row(domain="numbers", source="école"), "", row(task="up", instruction="", input="a", output="A")]
    assert load(tmp_path, rows, name=name) == (
        Example("test", "sum", "numbers", "école", "add", "1 2", "3"),
        Example("test", "up", "up", "", "", "a", "A"),  # the domain is the task where there is none
    )


def test_an_input_is_not_needed_where_there_is_an_instruction(tmp_path):
    instruction_only = {"task": "t", "instruction": "say hi", "output": "hi", "split": "test"}
    assert load(tmp_path, [instruction_only]) == (Example("test", "t", "t", "", "say hi", "", "hi"),)


def test_the_same_prompt_may_stand_in_a_split_with_two_answers(tmp_path):
    assert len(load(tmp_path, [row(), row(output="4")])) == 2


def test_a_file_without_wanted_examples_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no examples of the splits train, test \\(1 rows, 0 of them bad\\): give"):
        load(tmp_path, [row(split="validation")])


def test_rows_without_a_split_are_split_by_the_hash_of_their_prompt(tmp_path):
    rows = [row(input=str(n), split=None) for n in range(2000)]
    with_test, with_validation = (
        load(tmp_path, rows, train=5000, evaluation=5000),
        load(tmp_path, rows, train=5000, evaluation=5000, split="validation"),
    )
    prompts = {
        split: {example.prompt for example in part if example.split == split}
        for part, split in ((with_test, "train"), (with_test, "test"), (with_validation, "validation"))
    }
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 2000
    shares = {split: len(part) / 2000 for split, part in prompts.items()}
    assert shares == pytest.approx({"train": 0.7, "test": 0.2, "validation": 0.1}, abs=0.03)  # 3 sigma
    # Neither the order of rows nor what else is there moves a row.
    assert load(tmp_path, rows[::-1], train=5000, evaluation=5000) == with_test
    half = load(tmp_path, rows[:1000], train=5000, evaluation=5000)
    assert set(half) <= set(with_test)


def test_limits_count_per_task_and_split_whatever_the_order(tmp_path):
    rows = [
        row(task=task, input=f"{task} {split} {n}", split=split)
        for task in ("a", "b")
        for split in ("train", "test")
        for n in range(40)
    ]
    some = load(tmp_path, rows, train=7, evaluation=3)
    counts = {(task, split): 0 for task in ("a", "b") for split in ("train", "test")}
    for example in some:
        counts[example.task, example.split] += 1
    assert counts == {("a", "train"): 7, ("a", "test"): 3, ("b", "train"): 7, ("b", "test"): 3}
    assert load(tmp_path, rows[::-1], train=7, evaluation=3) == some
    assert set(some) < set(load(tmp_path, rows, train=9, evaluation=5))  # a larger limit adds only


def test_the_built_in_tasks_come_by_name():
    read_data.cache_clear()
    examples = load_examples("skills", 4, 2, "validation", 0)
    assert {(e.split, sum(o.task == e.task and o.split == e.split for o in examples)) for e in examples} == {
        ("train", 4),
        ("validation", 2),
    }


def test_named_training_rows_stay_where_validation_rows_are_named(tmp_path):
    rows = [row(input=str(number), split="train") for number in range(100)]
    moved = [example for example in load(tmp_path, rows, split="validation") if example.split == "validation"]
    assert 2 <= len(moved) <= 25
    named = load(tmp_path, [*rows, row(input="a", split="validation")], split="validation")
    assert [example.input for example in named if example.split == "validation"] == ["a"]


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode())
    read_data.cache_clear()
    assert [example.task for example in load_examples(str(path), 1, 1, "test", 0)] == ["sum"]


def test_examples_are_of_the_chosen_tasks_alone():
    read_data.cache_clear()
    everything = load_examples("skills", 3, 2, "test", 0)
    chosen = load_examples("skills", 3, 2, "test", 0, "add,city")
    assert chosen == tuple(example for example in everything if example.task in ("add", "city"))
    assert len(chosen) == 2 * (3 + 2)
