"""fedmops check prepares all clients as a run does, names what keeps a client, trains nothing and leaves nothing."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message

import client.app
from common.perplexity import AnswerScore
from server.run_directory import METRICS
from simulations.check import Readiness, penalty, problem_lines

pytestmark = pytest.mark.usefixtures("one_thread", "empty_directory", "small_terminal")
Check = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def small_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.cli.console._width", 80)


@pytest.fixture
def check(
    fedmops: Callable[..., int],
    small_run: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Check:
    """Return what runs the command and gives its exit code, what it prints and its errors; nothing may be left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*options: str, **changes: Any) -> tuple[int, list[str], str]:
        settings = small_run | {key.replace("_", "-"): value for key, value in changes.items()}
        code = fedmops("check", *options, *(f"{key}={value}" for key, value in settings.items()))
        shown = capsys.readouterr()
        assert [*temporary.iterdir()] == [*Path.cwd().glob("runs*")] == []
        return code, shown.out.splitlines(), shown.err

    return run


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Return the table's cells by client."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return {first: rest for first, *rest in cells if first}


def test_all_are_ready_and_the_next_command_is_told(check: Check, small_run: dict[str, Any]) -> None:
    code, lines, errors = check()
    assert (code, errors) == (0, "")
    table = rows(lines)
    assert list(table) == ["0", "1", "2"]
    assert sum(int(row[1]) for row in table.values()) == 80  # four of each of 20 tasks
    assert sum(int(row[2]) for row in table.values()) == 40
    assert {tuple(row[3:5]) for row in table.values()} == {("0", "0")}
    assert lines[-3].startswith(f"backbone: {small_run['backbone']}, none, weights ")
    assert lines[-2] == "mixture: 3 experts of 2 tokens in layers 1 to 1, 259 parameters"
    words = " ".join(f"{key}={value}" for key, value in small_run.items())
    assert lines[-1].startswith("all 3 clients are ready (") and lines[-1].endswith(f"next, fedmops simulate {words}")


def test_it_says_of_every_client_what_a_run_finds(
    check: Check, fedmops: Callable[..., int], small_run: dict[str, Any]
) -> None:
    changes = {"seed": 3, "num_rounds": 1, "max_sequence_tokens": 50, "too_long_prompts": "leave-out"}
    _, lines, _ = check(**changes)
    settings = small_run | {key.replace("_", "-"): value for key, value in changes.items()} | {"run-directory": "run"}
    assert fedmops("simulate", *(f"{key}={value}" for key, value in settings.items())) == 0
    result = json.loads(Path("run/result.json").read_text())
    for row in result["clients"]:
        _, train, test, cut, left_out, perplexity = rows(lines)[str(row["client"])]
        assert (int(train), int(test)) == (row["num_training_examples"], row["num_examples"])
        assert int(left_out) == sum(row["data"][name]["num_prompts_too_long"] for name in ("train", "evaluation")) > 0
        assert (cut, perplexity) == ("0", f"{row['backbone_perplexity']:.2f}")


def test_nothing_is_trained(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], client.app.app

    def app(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return real(message, context)

    monkeypatch.setattr(client.app, "app", app)
    assert check()[0] == 0
    assert asked == ["query.prepare"] * 3 + ["query.moments"] * 3


def test_clients_that_are_not_ready_are_named_while_the_others_show(
    check: Check, tiny_backbone: str, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    (tmp_path / "bad.csv").write_text("question,kind\nwhat?,greeting\n")
    clients = tmp_path / "clients.toml"
    clients.write_text(f'[0]\nbackbone = "{other}"\n[2]\ndata = "bad.csv"\n[3]\nquantization = "int8"')
    code, lines, _ = check(clients=clients, num_clients=5)
    assert code == 1
    table = rows(lines)
    assert [client for client, row in table.items() if row[0] == "not ready"] == ["0", "2"]
    assert [table[client][1] for client in ("1", "3", "4")] == ["none", "int8", "none"]
    problems = [line for line in lines if line.startswith("client ")]
    assert problems[0].startswith("client 0: its tokenizer differs from most clients' (")
    assert problems[0].endswith("): copy tokenizer.json from them")
    assert problems[1].startswith("client 2: ") and "the columns 'question', 'kind' fit none of" in problems[1]
    assert len(problems) == 2
    assert lines[-1].startswith("3 of 5 clients are ready (")


def test_what_keeps_all_clients_is_said_once(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def app(message: Message, context: Context) -> Message:
        raise OSError("the disk is full: make room")

    monkeypatch.setattr(client.app, "app", app)
    code, lines, _ = check()
    assert code == 1
    assert lines[-2] == "all clients: the disk is full: make room"
    assert lines[-1].startswith("0 of 3 clients are ready (")


def test_what_keeps_the_run_after_the_first_exchange_is_told(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    real = client.app.app

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.moments":
            raise OSError("the disk is full")
        return real(message, context)

    monkeypatch.setattr(client.app, "app", app)
    code, lines, _ = check()
    assert code == 1
    assert lines[-3:-1] == ["all clients: the disk is full", "no client sent its moments: the disk is full"]


def test_bad_input_ends_in_one_line_and_exit_code_2(check: Check, small_run: dict[str, Any]) -> None:
    (taken := Path("taken")).mkdir()
    (taken / METRICS).touch()
    for changes, reason in (
        ({"num_experts": 0}, "num-experts must be at least 1, got 0"),
        ({"num_clients": 999}, "num-clients is 999, but there are only 80 training examples"),
        ({"clients": "nowhere.toml"}, "clients 'nowhere.toml' is no file"),
        ({"run_directory": "taken"}, "run-directory taken holds a run already"),
    ):
        code, lines, errors = check(**changes)
        assert (code, lines) == (2, [])
        assert errors.startswith("error: ") and errors.count("\n") == 1 and reason in errors


def test_a_problem_of_several_clients_is_one_line() -> None:
    problems = {2: "client 2 is left out: other weights", 0: "no reply", 3: "client 3 is left out: other weights"}
    assert problem_lines(Readiness({}, problems), 5) == ["client 0: no reply", "clients 2, 3: other weights"]
    assert problem_lines(Readiness({}, {}, "the run does not fit"), 5) == ["the run does not fit"]


@pytest.mark.parametrize("measured", [{}, {"measures": "exact-match", "measure_examples": 1, "max_answer_tokens": 2}])
def test_the_penalty_is_that_of_each_clients_own_compression(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any]
) -> None:
    clients = tmp_path / "clients.toml"
    clients.write_text('[1]\nquantization = "nf4"\n')
    monkeypatch.setattr("simulations.check.penalty", lambda own, plain: own.quantization[-1] + plain.quantization[-1])
    code, lines, errors = check("--penalty", clients=clients, **measured)
    assert (code, errors) == (0, "")
    assert [row[-1] for row in rows(lines).values()] == ["ee", "4e", "ee"]  # of none and nf4
    assert not any("penalty" in line for line in check(clients=clients)[1] if line.startswith("┃"))


def test_a_penalty_is_a_share_of_the_perplexity() -> None:
    def reply(nll: float) -> Any:
        return SimpleNamespace(scores={"a": AnswerScore(nll, num_tokens=10, num_characters=10, num_examples=1)})

    assert penalty(reply(10 * math.log(3)), reply(10 * math.log(2))) == "+50.0%"
    assert penalty(reply(1.0), None) == ""
