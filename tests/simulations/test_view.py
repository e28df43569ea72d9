"""The live view shows what is in the run directory, half-written lines aside."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.view import RunView, Tail


def test_a_file_that_does_not_exist_yet_has_no_lines(tmp_path: Path) -> None:
    assert Tail(tmp_path / "later.jsonl").new_lines() == []


def test_a_line_is_read_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tail = Tail(path)
    with open(path, "ab", buffering=0) as file:
        file.write(b'{"a": 1}\n{"a": 2')
        assert tail.new_lines() == [{"a": 1}]
        assert tail.new_lines() == []
        file.write(b"2}")
        assert tail.new_lines() == []
        file.write(b'\n{"a": "\xc3')  # half a letter
        assert tail.new_lines() == [{"a": 22}]
        file.write(b'\xa4"}\n{"a": 4}\n')
        assert tail.new_lines() == [{"a": "ä"}, {"a": 4}]
        assert tail.new_lines() == []


def write(path: Path, *lines: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def score(server_round: int, phase: str, client: int, nll: float) -> dict[str, Any]:
    return {"round": server_round, "phase": phase, "client": client, "task": "sum", "nll": nll, "num_tokens": 10}


def round_line(number: int, **changes: Any) -> dict[str, Any]:
    line = {
        "round": number,
        "loss": 1.23456,
        "perplexity": 2.34567,
        "num_clients_trained": 2,
        "bytes_down": 1_500_000,
        "bytes_up": 250_000,
        "seconds": 3.21,
        "failed": {"train": {}, "evaluate": {}},
    }
    return line | changes


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def view(output: io.StringIO, directory: Path) -> RunView:
    return RunView(Console(file=output, width=200), directory, num_rounds=2, num_clients=2)


def test_a_run_that_wrote_nothing_shows_nothing(output: io.StringIO, tmp_path: Path) -> None:
    with view(output, tmp_path / "none"):
        pass
    assert output.getvalue().strip() == ""


def test_each_round_has_its_line_after_the_backbones(output: io.StringIO, tmp_path: Path) -> None:
    with view(output, tmp_path):
        before = round_line(0, num_clients_evaluated=2, failed={"prepare": {"1002": "no such file"}, "moments": {}})
        write(tmp_path / "rounds.jsonl", before, round_line(1), round_line(2, perplexity=2.0))
    assert output.getvalue().rstrip().splitlines() == [
        "backbone alone: perplexity 2.346, 2 clients, 1.50 MB down, 0.25 MB up, 3.2 s",
        "  node 1002 failed to prepare: no such file",
        "round 1 of 2: loss 1.235, perplexity 2.346, 2 clients, 1.50 MB down, 0.25 MB up, 3.2 s",
        "round 2 of 2: loss 1.235, perplexity 2.000, 2 clients, 1.50 MB down, 0.25 MB up, 3.2 s",
    ]


def test_a_failed_client_is_named_with_its_reason(output: io.StringIO, tmp_path: Path) -> None:
    failed = {"train": {"1": "no reply within 5 s"}, "evaluate": {"0": "got [red]NaN[/red]"}}
    with view(output, tmp_path):
        write(tmp_path / "metrics.jsonl", score(0, "backbone", 0, 10.0))
        write(tmp_path / "rounds.jsonl", round_line(1, failed=failed))
    assert output.getvalue().rstrip().splitlines()[-2:] == [
        "  client 1 failed to train: no reply within 5 s",
        "  client 0 failed to evaluate: got [red]NaN[/red]",
    ]


@pytest.mark.parametrize(
    ("lines", "description"),
    [
        ([score(0, "backbone", 0, 1.0), score(0, "backbone", 0, 1.0)], "evaluating the backbone alone, 1 of 2 clients"),
        ([score(1, "train", client, 1.0) for client in (0, 1)], "round 1 of 2: training, 2 of 2 clients"),
        ([score(2, "mixture", 1, 1.0)], "round 2 of 2: evaluating, 1 of 2 clients"),
        ([score(3, "train", 1, 1.0)], "training, 1 of 2 clients"),
        (
            [score(3, "personal", client, 1.0) for client in (0, 1)],
            "evaluating what each client made of it for itself, 2 of 2 clients",
        ),
    ],
)
def test_the_bar_says_which_clients_have_answered(
    output: io.StringIO, tmp_path: Path, lines: list[dict[str, Any]], description: str
) -> None:
    shown = view(output, tmp_path)
    write(tmp_path / "metrics.jsonl", *lines)
    shown._update()
    assert shown._progress.tasks[0].description == description


def test_what_ends_the_run_passes_through(output: io.StringIO, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), view(output, tmp_path):
        raise KeyboardInterrupt
