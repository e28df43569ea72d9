"""Examples from JSONL: what is read, how it is split and limited, and what is refused."""

import gzip
import json
from itertools import pairwise

import pytest

from common.data import choose_tasks, load_examples
from common.example import Example


def row(**changes):
    return {"task": "sum", "instruction": "add", "input": "1 2", "output": "3", "split": "test"} | changes


def load(tmp_path, rows, *, train=1000, evaluation=1000, split="test", name="data.jsonl"):
    text = "\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    load_examples.cache_clear()
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


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes): write one JSON object a line"),
        ("[1]", "is not an object: write one JSON object a line"),
        (row(task=""), "has no 'task': expected a text"),
        (row(task=3), "has no 'task': expected a text"),
        ({"task": "sum", "instruction": "add"}, "has no 'output': expected a text"),
        (row(output=None), "has no 'output': expected a text"),
        (row(instruction="", input=None), "has neither 'instruction' nor 'input': expected a text in one of them"),
        (row(instruction=5), "has neither 'instruction' nor 'input': expected a text in one of them"),
        (row(split="dev"), "has the split 'dev': expected train, validation, test, or none"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_line(tmp_path, bad, message):
    with pytest.raises(ValueError) as error:
        load(tmp_path, [row(input="0"), "", bad])
    assert str(error.value) == f"{tmp_path / 'data.jsonl'}, line 3 {message}"


def test_the_same_prompt_in_two_splits_is_an_error(tmp_path):
    # In a named split that this run does not read, too.
    with pytest.raises(ValueError) as error:
        load(tmp_path, [row(split="validation"), row(split="test")])
    assert str(error.value).startswith(
        f"{tmp_path / 'data.jsonl'}, line 2: the same prompt stands in validation and test: leave one out"
    )
    assert len(load(tmp_path, [row(), row(output="4")])) == 2


def test_a_file_without_wanted_examples_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no examples of the splits train, test: give a file with some"):
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
    load_examples.cache_clear()
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task": "t", "instruction": "\xff"}', "cannot be read after line 0 .*: write UTF-8"),
        (gzip.compress(json.dumps(row()).encode() * 99)[:-20], "cannot be read after line 0 .*whole if gzip"),
        (b"no gzip", "cannot be read after line 0 .*whole if gzip"),
    ],
)
def test_bytes_that_are_no_text_are_an_error_with_file_and_line(tmp_path, content, message):
    path = tmp_path / ("data.jsonl" if b"task" in content else "data.jsonl.gz")
    path.write_bytes(content)
    load_examples.cache_clear()
    with pytest.raises(ValueError, match=message):
        load_examples(str(path), 1, 1, "test", 0)


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode())
    load_examples.cache_clear()
    assert [example.task for example in load_examples(str(path), 1, 1, "test", 0)] == ["sum"]


# --- The tasks of a run ---

KNOWN = ["add", "age", "city", "double", "first", "last", "vowels"]


def test_all_tasks_are_the_default():
    assert choose_tasks("all", KNOWN, 0) == {*KNOWN}


def test_of_two_numbers_of_tasks_the_larger_one_holds_the_smaller_ones():
    for known in (KNOWN, [f"task {number}" for number in range(150)]):  # Python draws from few as it does not from many
        chosen = [choose_tasks(str(number), known, 3) for number in range(1, len(known) + 1)]
        assert [len(tasks) for tasks in chosen] == [*range(1, len(known) + 1)]
        assert all(smaller < larger for smaller, larger in pairwise(chosen))
        assert chosen[-1] == {*known}


def test_the_seed_draws_the_tasks():
    assert choose_tasks("3", KNOWN, 1) == choose_tasks("3", KNOWN, 1)
    assert len({frozenset(choose_tasks("3", KNOWN, seed)) for seed in range(20)}) > 5


def test_tasks_may_be_named():
    assert choose_tasks("city", KNOWN, 0) == {"city"}
    assert choose_tasks(" add, vowels,add", KNOWN, 0) == {"add", "vowels"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("frst,add", "tasks: the data has no task 'frst': did you mean first"),
        ("zebra", "tasks: the data has no task 'zebra': expected some of add, age, city, double, first, last, vowels"),
        ("add,", "tasks: the data has no task ''"),
        ("", "tasks: the data has no task ''"),
        ("0", "tasks must be a number from 1 to 7, the tasks of the data, got 0"),
        ("8", "tasks must be a number from 1 to 7, the tasks of the data, got 8"),
        ("-1", "tasks: the data has no task '-1'"),
    ],
)
def test_tasks_that_are_not_there_are_an_error_in_one_line(wanted, message):
    with pytest.raises(ValueError) as error:
        choose_tasks(wanted, KNOWN, 0)
    assert str(error.value).startswith(message)


def test_examples_are_of_the_chosen_tasks_alone():
    load_examples.cache_clear()
    everything = load_examples("skills", 3, 2, "test", 0)
    chosen = load_examples("skills", 3, 2, "test", 0, "add,city")
    assert chosen == tuple(example for example in everything if example.task in ("add", "city"))
    assert len(chosen) == 2 * (3 + 2)
