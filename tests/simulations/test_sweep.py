"""fedmops sweep: bad input starts nothing, an interrupted sweep goes on, a failure is told, the table is right."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import SMALL, FakeRuns

from simulations.runs import Run

Fedmops = Callable[..., int]


@pytest.fixture
def sweep(fedmops: Fedmops) -> Fedmops:
    """Return a function that runs `fedmops sweep` in this process and returns its exit code."""
    return partial(fedmops, "sweep")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--over", "temperature=1,0"], "error: temperature=0 seed=0: temperature must be above 0, got 0.0\n"),
        (["--over", "num-clients=2,999"], "error: num-clients=999 seed=0: num-clients is 999, but there are only "),
        (["--over", "temperature=1", "--seeds", "0,x"], "error: --seeds must be whole numbers"),
        (["--over", "temperature=1", "--output", "taken"], "error: --output must be a directory, new or "),
    ],
)
def test_bad_input_ends_in_one_line_with_nothing_started_or_written(
    sweep: Fedmops,
    fake_runs: FakeRuns,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    (empty_directory / "taken").touch()
    assert sweep("train-examples=4", "eval-examples=2", "--output", "out", *words) == 2
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert err.startswith(reason)
    assert err.count("\n") == 1
    assert fake_runs.started == []
    assert [path.name for path in empty_directory.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    "words",
    [
        ["--output", "out"],
        ["--over", "temperature=1"],
        ["--over", "temperature=1", "--output", "o", "--split", "train"],
    ],
)
def test_bad_usage_ends_in_exit_code_2(sweep: Fedmops, empty_directory: Path, words: list[str]) -> None:
    assert sweep(*words) == 2
    assert [*empty_directory.iterdir()] == []


def test_a_sweep_tells_of_each_run_and_leaves_its_table(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.code["temperature=1,seed=0"] = "assert (directory.parents[1] / 'sweep.md').exists()"
    words = [*SMALL, "--over", "temperature=1,4", "--output", str(empty_directory / "out"), "--processes", "2"]
    assert sweep(*words) == 0
    shown = capsys.readouterr().out
    assert "6 runs, 2 at a time\n" in shown
    for temperature, seed in ((1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (4, 2)):
        assert shown.count(f"temperature={temperature},seed={seed}: perplexity {temperature * 2**seed:.3f}\n") == 1
    assert "| 4 | 8.000 |" in shown
    report = json.loads((empty_directory / "out" / "sweep.json").read_text())
    recorded = shlex.split(report["command"])
    assert recorded[:7] == ["fedmops", "sweep", *SMALL, "--over", "temperature=1,4"]
    assert recorded[7:] == "--seeds 0,1,2 --split validation --output out --processes 2".split()
    config = json.loads((empty_directory / "out" / "runs" / "temperature=4,seed=2" / "config.json").read_text())
    assert [config[key] for key in ("temperature", "seed", "eval-split")] == [4, 2, "validation"]


def test_the_split_and_the_seeds_are_those_asked_for(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    words = [*SMALL, "--over", "temperature=1", "--seeds", "5", "--split", "test", "--output", "out"]
    assert sweep(*words) == 0
    assert fake_runs.started == ["temperature=1,seed=5"]
    (config,) = empty_directory.glob("out/runs/*/config.json")
    assert json.loads(config.read_text())["eval-split"] == "test"
    assert json.loads((empty_directory / "out" / "sweep.json").read_text())["split"] == "test"


def test_a_failed_run_is_named_the_others_go_on_and_the_same_command_tries_it_again(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.code["temperature=1,seed=0"] = "sys.exit('a warning\\nfailed: [red]no power[/red]')"
    words = [*SMALL, "--over", "temperature=1,2", "--seeds", "0,1", "--output", "out", "--processes", "1"]
    assert sweep(*words) == 1
    shown = capsys.readouterr().out
    assert "temperature=1,seed=0: failed: [red]no power[/red]\n" in shown
    assert "| 1 | 2.000 |  | 2.000 to 2.000 | 1 of 2 |" in shown
    assert "1 of 4 runs failed: the same command tries them again" in shown
    assert len(fake_runs.started) == 4

    fake_runs.code.clear()
    assert sweep(*words) == 0
    assert fake_runs.started[4:] == ["temperature=1,seed=0"]
    assert "4 runs, 1 at a time, 3 of them are there already\n" in capsys.readouterr().out


@pytest.mark.usefixtures("ctrl_c")
def test_after_ctrl_c_no_process_is_left_the_table_can_be_read_and_the_same_command_goes_on(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    press = "import os, signal\nos.kill(os.getppid(), signal.SIGINT)\nwhile True: pass"
    fake_runs.code["temperature=1,seed=1"] = press
    words = [*SMALL, "--over", "temperature=1", "--output", "out", "--processes", "1"]
    assert sweep(*words) == 130
    assert "stopped: the same command goes on from here\n" in capsys.readouterr().out
    assert [process.poll() is not None for process in fake_runs.processes] == [True, True]
    report = json.loads((empty_directory / "out" / "sweep.json").read_text())
    assert ["perplexity" in row for row in report["runs"]] == [True, False, False]
    assert "1 of 3 runs have a result" in (empty_directory / "out" / "sweep.md").read_text()

    fake_runs.code.clear()
    assert sweep(*words) == 0
    assert fake_runs.started[2:] == ["temperature=1,seed=1", "temperature=1,seed=2"]
    assert "| 1 | 2.000 |" in capsys.readouterr().out


def test_finished_runs_with_other_settings_are_an_error_that_says_what_to_do(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--over", "temperature=1", "--seeds", "0", "--output", "out"]
    assert sweep(*words) == 0
    before = (empty_directory / "out" / "sweep.json").read_bytes()
    assert sweep(*words, "num-rounds=3") == 2
    expected = "out/runs/temperature=1,seed=0 holds a run with other settings: choose another --output or remove it\n"
    assert capsys.readouterr().err == f"error: {expected}"
    assert len(fake_runs.started) == 1
    assert (empty_directory / "out" / "sweep.json").read_bytes() == before


def test_three_keys_have_no_plot_and_the_command_says_so(
    sweep: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = [word for key in ("temperature", "batch-size", "num-rounds") for word in ("--over", f"{key}=1")]
    assert sweep(*SMALL, *over, "--seeds", "0", "--output", "out") == 0
    assert "no plot: 3 keys are swept, it shows one or two\n" in capsys.readouterr().out


def test_a_real_sweep_runs_once_and_records_no_path(
    sweep: Fedmops, small_run: dict[str, Any], empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run | {"num-rounds": 1}
    del settings["num-experts"], settings["gate-hidden-size"]
    words = [f"{key}={value}" for key, value in settings.items()]
    words += ["--over", "num-experts=1,3", "--seeds", "0", "--output", str(empty_directory / "out")]
    assert sweep(*words) == 0
    one, three = json.loads((empty_directory / "out" / "sweep.json").read_text())["runs"]
    for row in (one, three):
        name = f"num-experts={row['settings']['num-experts']},seed=0"
        result = json.loads((empty_directory / "out" / "runs" / name / "result.json").read_text())
        assert (row["perplexity"], row["backbone_perplexity"]) == (result["perplexity"], result["backbone_perplexity"])
        assert row["bytes_up_per_client_and_round"] > 0
    assert one["num_parameters"] < three["num_parameters"]
    assert ("gate_entropy" in one, "gate_entropy" in three) == (False, True)
    written = (empty_directory / "out" / "sweep.json").read_text() + (empty_directory / "out" / "sweep.md").read_text()
    assert str(empty_directory) not in written
    assert settings["backbone"] not in written
    assert (empty_directory / "out" / "sweep.png").stat().st_size > 1000

    monkeypatch.setattr(Run, "command", lambda run: pytest.fail("a finished run started again"))
    assert sweep(*words) == 0
