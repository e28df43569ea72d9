"""Who would own what: known counts in the table, a known distance, and what is written."""

import json
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from simulations.partitions import distance, show_partitions, table

SMALL = ["train-examples=20", "eval-examples=5", "tasks=add,age,city", "num-clients=3"]


def shown(*words: str, output: Path | None = None) -> str:
    written = StringIO()
    show_partitions([*SMALL, *words], output, Console(file=written, width=100))
    return written.getvalue()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_table_counts_training_examples_by_client_and_task() -> None:
    lines = [cells(line) for line in shown("partition=iid").splitlines() if line.startswith("│")]
    assert [line[0] for line in lines] == ["add", "age", "city", "tasks", "train", "test"]
    counts = [list(map(int, line[1:])) for line in lines]
    assert [sum(row) for row in counts[:3]] == [20, 20, 20]
    assert [sum(column) for column in zip(*counts[:3], strict=True)] == counts[4]
    assert sum(counts[5]) == 15


def test_many_clients_stand_below_each_other() -> None:
    built = table([Counter({"a": 3, "b[": 1})] * 13, [2] * 13, "test")
    assert [column.header for column in built.columns] == ["client", "tasks", "train", "test", "largest task"]
    written = StringIO()
    Console(file=written, width=100).print(built)
    assert cells([line for line in written.getvalue().splitlines() if "│" in line][-1]) == [
        "12",
        "2",
        "4",
        "2",
        "a (75%)",
    ]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ([{"a": 5, "b": 5}, {"a": 1, "b": 1}], 0.0),
        ([{"a": 5}, {"b": 5}], 0.5),  # each has all of one task, of which the pool has half
        ([{"a": 4}, {"a": 2, "b": 2}], 0.25),  # pool: 3/4 and 1/4
    ],
)
def test_distance_is_the_mean_total_variation(training: list[dict[str, int]], expected: float) -> None:
    assert distance([Counter(own) for own in training]) == pytest.approx(expected)


def test_json_and_picture_are_written(tmp_path: Path) -> None:
    said = shown("partition=pathological", "tasks-per-client=1", output=tmp_path / "new")
    assert "3 clients, 3 tasks, 75 examples; 3 tasks have one holder;" in " ".join(said.split())
    report = json.loads((tmp_path / "new" / "partitions.json").read_text())
    assert (report["partition"], report["seed"]) == ("pathological", 0)
    assert sorted(tuple(client["train"].items()) for client in report["clients"]) == [
        (("add", 20),),
        (("age", 20),),
        (("city", 20),),
    ]
    assert [client["test"] for client in report["clients"]] == [5, 5, 5]
    assert (tmp_path / "new" / "partitions.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks-per-client must be at most 3, the tasks of the data, got 4"):
        shown("partition=pathological", "tasks-per-client=4", output=tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--output must be a directory, got"):
        shown(output=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
