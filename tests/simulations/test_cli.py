"""The command line: bad input ends in one line and nothing else, a failed or stopped run says so by its exit code."""

import contextlib
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from safetensors.numpy import load_file

import client.app
from simulations.cli import main

BAD_INPUT = {
    "unknown preset": (["mixtur"], "unknown preset 'mixtur': expected mixture, one-group, or the path of a TOML"),
    "unknown key": (["num-experst=3"], "unknown key 'num-experst': did you mean num-experts"),
    "unknown backbone": (["backbone=nowhere"], "unknown backbone 'nowhere': expected 'skills', a directory"),
    "unknown quantization": (
        ["quantization=int3"],
        "quantization must be one of none, nf4, nf4-double, fp4, int8",
    ),
    "layer past the last": (["injection-layer=2"], "injection-layer must be at most 1, the last layer of "),
    "zero experts": (["num-experts=0"], "num-experts must be at least 1, got 0"),
    "more clients than examples": (
        ["num-clients=999", "train-examples=1"],
        "num-clients is 999, but there are only ",
    ),
    "wrong type": (["num-rounds=many"], "num-rounds must be a whole number, got 'many'"),
    "two presets": (["mixture", "one-group"], "expected one preset or TOML file, got mixture and one-group"),
    "no data": (["data=nowhere.jsonl"], "data 'nowhere.jsonl' is neither 'skills' nor a file"),
    "an empty client": (
        ["num-clients=16", "partition=dirichlet", "dirichlet-alpha=0.01", "train-examples=2", "eval-examples=1"],
        "dirichlet-alpha",
    ),
}
BAD_USAGE = {
    "no command": [],
    "unknown command": ["simulat"],
    "unknown option": ["simulate", "--rounds", "3"],
    "unknown engine": ["simulate", "--engine", "spark"],
    "no CPU": ["simulate", "--cpus-per-client", "0"],
}

# One process runs them all: each start takes seconds.
DRIVER = """
import contextlib, io, json, sys
from simulations.cli import main
outcomes = {}
for name, words in json.load(sys.stdin).items():
    sys.argv = ["fedmops", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    outcomes[name] = (code, out.getvalue(), err.getvalue(), "torch" in sys.modules)
print(json.dumps(outcomes))
"""


@dataclass(frozen=True)
class Outcome:
    code: int | str
    out: str
    err: str
    torch_imported: bool


@pytest.fixture(scope="module")
def outcomes(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    directory = tmp_path_factory.mktemp("bad-input")
    commands = {name: ["simulate", f"backbone={tiny_backbone}", *words] for name, (words, _) in BAD_INPUT.items()}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(commands | BAD_USAGE),
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(directory.iterdir()) == []
    return {name: Outcome(*outcome) for name, outcome in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_exit_code_2(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert BAD_INPUT[name][1] in outcome.err


def test_bad_input_is_told_before_torch_is_imported(outcomes: dict[str, Outcome]) -> None:
    assert [name for name in BAD_INPUT if outcomes[name].torch_imported] == []


@pytest.mark.parametrize("name", BAD_USAGE)
def test_bad_usage_ends_without_a_traceback_in_exit_code_2(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].code == 2


@pytest.fixture
def as_before() -> Iterator[None]:
    """Undo what a command does to the process: its handler of SIGTERM, and the level of Flower's log."""
    handler = signal.getsignal(signal.SIGTERM)
    levels = {handler: handler.level for handler in logging.getLogger("flwr").handlers}
    yield
    signal.signal(signal.SIGTERM, handler)
    for each, level in levels.items():
        each.setLevel(level)


def fedmops(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], *words: str) -> int:
    """Run `fedmops simulate` in this process; return its exit code."""
    words = (*(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in settings.items()), *words)
    monkeypatch.setattr(sys, "argv", ["fedmops", "simulate", *words])
    try:
        main()
    except SystemExit as stop:
        assert stop.code is None or isinstance(stop.code, int)
        return stop.code or 0
    return 0


pytestmark = pytest.mark.usefixtures("one_thread", "as_before")


def test_a_run_prints_its_rounds_and_its_result_and_leaves_a_directory(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fedmops(monkeypatch, small_run, "name=first") == 0
    shown = capsys.readouterr().out
    (directory,) = (empty_directory / "runs").iterdir()
    assert directory.name.endswith("-first")
    assert (directory / "result.json").exists()
    assert "clients: 3, rounds: 2, engine: inline" in shown
    for line in ("backbone alone: perplexity", "round 1 of 2: loss", "round 2 of 2: loss", "geometric mean over"):
        assert shown.count(line) == 1, line
    assert f"results are in runs/{directory.name}" in shown


def test_a_failed_run_ends_in_one_line_and_exit_code_1(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = client.app.app

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            raise OSError("the disk is full")
        return real(message, context)

    monkeypatch.setattr(client.app, "app", app)
    assert fedmops(monkeypatch, small_run, "run-directory=kept") == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert len(told) == 1
    assert "round 1: no client sent an update that can be merged; client 0: " in told[0]
    assert "the disk is full" in told[0]
    assert (empty_directory / "kept" / "metrics.jsonl").read_text().count("backbone") > 0
    assert not (empty_directory / "kept" / "result.json").exists()


def test_a_run_in_which_no_client_could_prepare_leaves_nothing(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fedmops(monkeypatch, small_run, "round-timeout-seconds=1e-9") == 1
    assert "failed: no client could prepare: no reply within 1e-09 s" in capsys.readouterr().err
    assert [*empty_directory.glob("runs/*")] == []


def test_an_existing_run_is_refused(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fedmops(monkeypatch, small_run, "run-directory=same") == 0
    before = {path.name: path.read_bytes() for path in (empty_directory / "same").iterdir()}
    assert fedmops(monkeypatch, small_run, "run-directory=same") != 0
    assert "same holds a run already: name another or remove it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (empty_directory / "same").iterdir()} == before


def test_an_existing_runs_rounds_are_not_shown_as_the_new_ones(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fedmops(monkeypatch, small_run, "run-directory=same")
    capsys.readouterr()
    fedmops(monkeypatch, small_run, "run-directory=same")
    assert "round 1" not in capsys.readouterr().out


def test_a_client_that_is_left_out_is_named_to_the_user(
    small_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    empty_directory: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = client.app.app

    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            context.run_config["quantization"] = "nf4"
        return real(message, context)

    monkeypatch.setattr(client.app, "app", app)
    assert fedmops(monkeypatch, small_run, "run-directory=kept") == 0
    told = "".join(capfd.readouterr())
    kept = "".join(path.read_text(errors="replace") for path in (empty_directory / "kept").iterdir())
    assert "client 2 is left out" in told + kept


def read_mixture(directory: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError):
        return load_file(directory / "adapter_model.safetensors")
    return None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_keeps_what_was_done(
    small_run: dict[str, Any], empty_directory: Path, number: signal.Signals, code: int
) -> None:
    words = [f"{key}={value}" for key, value in (small_run | {"num-rounds": 100_000, "run-directory": "kept"}).items()]
    # A background job of a shell ignores Ctrl-C, and what it starts does so too: ask for it again.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from simulations.cli import main; main()"
    kept = empty_directory / "kept"
    run = subprocess.Popen(
        [sys.executable, "-c", program, "simulate", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while run.poll() is None and not (
            (kept / "rounds.jsonl").exists() and '"round": 1' in (kept / "rounds.jsonl").read_text()
        ):
            time.sleep(0.02)
        run.send_signal(number)
        shown, errors = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert number == signal.SIGTERM or "what was done so far is in kept" in shown
    assert "Traceback" not in errors
    assert run.returncode == code
    assert json.loads((kept / "rounds.jsonl").read_text().splitlines()[1])["round"] == 1
    assert read_mixture(kept)
    assert not (kept / "result.json").exists()
