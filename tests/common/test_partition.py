"""Who owns what: everything has one owner, clients differ, and every task has two holders at least."""

import json
from collections import Counter
from pathlib import Path

import pytest

from common.config import default_run_config, read_config
from common.example import Example
from common.partition import partition as deal
from common.partition import partitions_of
from common.skills.suite import SKILLS, skill_examples

DEFAULTS = default_run_config(Path(__file__).parents[2])


def config(**changes):
    small = {"train-examples": 20, "eval-examples": 10}
    return read_config(DEFAULTS | small | {name.replace("_", "-"): value for name, value in changes.items()})


def partition(examples, method, num_clients, seed=0, alpha=10.0, tasks=2, shards=2):
    how = {"dirichlet_alpha": alpha, "tasks_per_client": tasks, "shards_per_client": shards}
    return deal(examples, config(partition=method, num_clients=num_clients, seed=seed, **how))


def built_in(train=20, test=10):
    return [*skill_examples("train", train, 0), *skill_examples("test", test, 0)]


def one_source(num_tasks=3, count=20):
    return [
        Example(split, f"task {task}", "domain", "", "do", f"{split} {task} {n}", "done")
        for split in ("train", "test")
        for task in range(num_tasks)
        for n in range(count)
    ]


@pytest.mark.parametrize("method", ["by-task", "iid", "dirichlet"])
@pytest.mark.parametrize("num_clients", [1, 2, 5, 8])
@pytest.mark.parametrize("draw", [built_in, one_source])
def test_every_example_has_one_owner(method, num_clients, draw):
    examples = draw()
    partitions = partition(examples, method, num_clients)
    assert len(partitions) == num_clients
    assert Counter(example for owned in partitions for example in owned) == Counter(examples)


def test_by_default_every_task_has_two_holders_and_every_client_some_of_each_split():
    partitions = partitions_of(config())
    assert len(partitions) == 8
    for split in ("train", "test"):
        holders = Counter(task for owned in partitions for task in {e.task for e in owned if e.split == split})
        assert len(holders) == len(SKILLS) and min(holders.values()) >= 2
    # A client is scored on the tasks that it trains on.
    for owned in partitions:
        assert {e.task for e in owned if e.split == "train"} == {e.task for e in owned if e.split == "test"}


def test_by_default_clients_differ_in_tasks_and_sources():
    partitions = partitions_of(config())
    assert [{example.source for example in owned} for owned in partitions] == [{"arrow"}, {"label"}] * 4
    tasks = [frozenset(example.task for example in owned) for owned in partitions]
    assert len(set(tasks)) == 8
    assert all(len(held) <= len(SKILLS) // 4 + 1 for held in tasks)


def test_one_source_is_shared_between_the_groups():
    partitions = partition(one_source(), "by-task", 4)
    for task in ("task 0", "task 1", "task 2"):
        for split, group in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
            owned = [e for c, part in enumerate(partitions) if c % 2 == group for e in part]
            assert sum(e.task == task and e.split == split for e in owned) == 10


def test_clients_that_share_a_task_share_it_evenly():
    partitions = partition(one_source(num_tasks=1, count=40), "by-task", 8)
    assert [len(owned) for owned in partitions] == [10] * 8


@pytest.mark.parametrize("method", ["by-task", "iid", "dirichlet", "pathological", "shard"])
def test_the_seed_decides(method):
    first, same, other = (partition(built_in(), method, 4, seed) for seed in (0, 0, 1))
    assert first == same != other


def test_a_small_alpha_makes_clients_differ_more():
    def largest_share(alpha):
        parts = partition(built_in(40, 0), "dirichlet", 4, alpha=alpha)
        counts = [Counter(example.task for example in owned) for owned in parts]
        return sum(max(count[skill.name] for count in counts) / 40 for skill in SKILLS) / len(SKILLS)

    assert largest_share(1000.0) < 0.35 < 0.5 < largest_share(0.1)


def test_identical_clients_have_the_same_share_of_every_task():
    for owned in partition(built_in(40, 0), "iid", 4):
        assert len(owned) == 10 * len(SKILLS)
        # 10 of each task are expected; a draw without replacement strays by 3 standard deviations of 2.4 at most.
        assert all(2 <= count <= 18 for count in Counter(example.task for example in owned).values())


def test_a_pathological_client_has_exactly_so_many_tasks_in_both_splits():
    for tasks in (1, 3):
        partitions = partition(built_in(), "pathological", 8, tasks=tasks)
        for owned in partitions:
            for split in ("train", "test"):
                assert len({example.task for example in owned if example.split == split}) == tasks
        assert len({example for owned in partitions for example in owned}) == sum(map(len, partitions))


def test_a_client_of_shards_has_as_many_examples_as_the_others_and_few_tasks():
    partitions = partition(built_in(), "shard", 8)
    assert {len(owned) for owned in partitions} == {len(built_in()) // 16 * 2}
    assert all(len({example.task for example in owned}) <= 6 for owned in partitions)


def test_by_source_a_client_is_a_source():
    assert [{example.source for example in owned} for owned in partition(built_in(), "by-source", 2)] == [
        {"arrow"},
        {"label"},
    ]


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("by-source", {}, "num-clients must be 2 with partition=by-source, the number of sources of the data "),
        ("pathological", {"tasks": 21}, "tasks-per-client must be at most 20, the tasks of the data, got 21"),
    ],
)
def test_what_cannot_be_dealt_out_is_an_error_in_one_line(method, changes, reason):
    with pytest.raises(ValueError) as error:
        partition(built_in(), method, 8, **changes)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


# The partitioner warns of each of its ten attempts; the error says what there is to say.
@pytest.mark.filterwarnings("ignore:The specified min_partition_size:UserWarning")
def test_a_dirichlet_draw_that_fails_is_an_error_in_one_line():
    with pytest.raises(ValueError) as error:
        partition(one_source(num_tasks=1, count=5), "dirichlet", 10, alpha=1e-3)
    assert str(error.value).startswith("partition=dirichlet leaves some of 10 clients without examples: a larger dir")
    assert "\n" not in str(error.value)


def test_more_clients_than_training_examples_are_an_error():
    with pytest.raises(ValueError, match=f"num-clients is 50, but there are only {2 * len(SKILLS)} training examples"):
        partitions_of(config(num_clients=50, train_examples=2))


def test_a_client_without_examples_of_a_split_is_an_error():
    with pytest.raises(
        ValueError, match=r"client \d+ of 8 owns no test examples: ask for fewer clients, a larger dirichlet"
    ):
        partitions_of(config(partition="dirichlet", dirichlet_alpha=0.05, eval_examples=1))


def test_bad_rows_of_a_users_data_are_an_error_that_says_how_to_leave_them_out(tmp_path):
    rows = [{"instruction": f"say {n}", "output": "" if n == 3 else str(n)} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError) as error:
        partitions_of(config(data=str(path), num_clients=2))
    assert str(error.value) == (
        f"{path}, line 4 has no 'output': expected a text; add it (skip-bad-rows=true leaves such rows out)"
    )
    owned = partitions_of(config(data=str(path), num_clients=2, skip_bad_rows=True))
    assert {example.task for examples in owned for example in examples} == {"rows"}
    named = config(data=str(path), num_clients=2, skip_bad_rows=True, columns="task='talk'")
    assert {example.task for examples in partitions_of(named) for example in examples} == {"talk"}
