"""fedmops compare: search, then comparison; bad input starts nothing, failures are told, an interruption goes on."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from comparisons import FLAT, SMALL
from fakes import FakeRuns

from simulations.comparison_table import document

Fedmops = Callable[..., int]

SOURCED = FLAT + "rates = [0.1, 0.2, 0.4]\nsettings = { temperature = 4.0 }\nsource = { temperature = 9.0 }\n"


@pytest.fixture
def compare(fedmops: Fedmops, empty_directory: Path) -> Fedmops:
    """Return a function that runs `fedmops compare` in this process and returns its exit code."""
    (empty_directory / "small.toml").write_text(SMALL)
    return partial(fedmops, "compare")


def results(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "out" / "results.json").read_text())
    return found


WORDS = ["small.toml", "--output", "out", "--seeds", "0,1", "--processes", "1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["small.tom"], "error: unknown comparison 'small.tom': "),
        (["small.toml", "num-round=3"], "error: the command line: unknown key 'num-round': did you mean num-rounds"),
        (
            ["small.toml", "num-clients=999"],
            "error: methods.one-group.settings: num-clients is 999, but there are only",
        ),
        (["small.toml", "--methods", "mixtur"], "error: --methods: unknown method 'mixtur': did you mean mixture?"),
        (["small.toml", "--seeds", "0,x"], "error: --seeds must be whole numbers"),
        (["small.toml", "--output", "small.toml"], "error: --output must be a directory, new or "),
    ],
)
def test_bad_input_ends_in_one_line_with_nothing_started_or_written(
    compare: Fedmops,
    fake_runs: FakeRuns,
    empty_directory: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    assert compare("--output", "out", *words) == 2
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert err.startswith(reason)
    assert err.count("\n") == 1
    assert fake_runs.started == []
    assert [path.name for path in empty_directory.iterdir()] == ["small.toml"]


def test_each_method_runs_with_each_seed_at_the_rate_that_its_search_chose(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.code["mixture,rate=0.2,seed=0,validation"] = "perplexity = 0.5"
    assert compare(*WORDS) == 0
    searched = [
        f"{name},rate={rate},seed=0,validation" for name in ("mixture", "one-group") for rate in (0.1, 0.2, 0.4)
    ]
    tested = [f"{name},seed={seed},test" for seed in (0, 1) for name in ("mixture,rate=0.2", "one-group,rate=0.1")]
    assert fake_runs.started == searched + tested
    shown = capsys.readouterr().out
    assert "mixture: learning rate 0.2\n" in shown
    assert "one-group: learning rate 0.1, the end of its rates: a better one may lie beyond\n" in shown
    assert "one-group,rate=0.1,seed=1,test: perplexity 4.000\n" in shown
    assert "| the mixture | 1.414 |" in shown
    config = json.loads((empty_directory / "out" / "runs" / tested[-1] / "config.json").read_text())
    keys = ("temperature", "learning-rate", "seed", "eval-split", "num-rounds", "num-clients")
    assert [config[key] for key in keys] == [2.0, 0.1, 1, "test", 8, 2]


def test_the_results_hold_all_that_tables_and_plots_need(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    fake_runs.always = "rounds[1]['failed'] = {'train': {'1': 'no reply'}}; write_rounds()"
    assert compare("small.toml", "--output", str(empty_directory / "out"), "--seeds", "3", "--processes", "2") == 0
    found = results(empty_directory)
    expected = "fedmops compare small.toml --seeds 3 --output out --processes 2"
    assert (found["command"], found["commit"], found["versions"]) == (expected, "c0ffee", {"torch": "2.0"})
    assert (found["seeds"], found["split"]) == ([3], "test")
    assert found["search"] == {"split": "validation", "seeds": [0], "num_rounds": 3}
    assert found["shared"] == {"train-examples": 4, "eval-examples": 2, "num-clients": 2}
    method = dict(found["methods"]["one-group"])
    (run,) = method.pop("runs")
    assert method == {
        "label": "one group",
        "kind": "prompt",
        "group": "federated",
        "equal_bytes": True,
        "local_of": None,
        "searched_as": None,
        "settings": {"temperature": 2.0},
        "source": None,
        "search": {"rates": [0.1, 0.2, 0.4], "perplexity": [2.0, 2.0, 2.0], "chosen": 0.1, "at_edge": True},
        "learning_rate": 0.1,
        "at_edge": True,
        "num_parameters": 160,
    }
    sizes = {"num_training_examples": 40, "num_examples": 10, "num_tokens": 25}
    assert run == {
        "seed": 3,
        "perplexity": 16.0,
        "backbone_perplexity": 8.0,
        "gate_entropy": 0.5,
        "task_expert_information": 1.25,
        "smallest_expert_use": 0.125,
        "bytes_down_per_client_and_round": 2000.0,
        "bytes_up_per_client_and_round": 1000.0,
        "rounds": [
            {"round": 0, "perplexity": 8.0, "bytes": 70_007, "seconds": 2.0},
            {"round": 1, "perplexity": 3.0, "bytes": 76_007, "seconds": 3.5},
            {"round": 2, "perplexity": 16.0, "bytes": 82_007, "seconds": 5.0},
        ],
        "clients": [
            {"client": 0, "tasks": ["add"], **sizes, "backbone_perplexity": 16.0, "perplexity": 8.0},
            {"client": 1, "tasks": ["age"], **sizes, "backbone_perplexity": 4.0, "perplexity": 32.0},
            {"client": 2, "tasks": ["age"], **sizes, "backbone_perplexity": 4.0},
        ],
        "failed_clients": [{"round": 1, "step": "train", "client": "1", "reason": "no reply"}],
    }
    out = empty_directory / "out"
    assert (out / "results.md").read_text() == document(found)
    assert str(empty_directory) not in (out / "results.json").read_text() + (out / "results.md").read_text()
    names = ["bytes.png", "clients.png", "results.json", "results.md", "rounds.png", "runs", "shared.toml"]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == names


def test_a_personalised_figure_is_kept(compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path) -> None:
    fake_runs.always = "result['clients'] = [row | {'personalised_perplexity': 1.5} for row in clients()]"
    assert compare(*WORDS, "--methods", "mixture") == 0
    (row, *_) = results(empty_directory)["methods"]["mixture"]["runs"][0]["clients"]
    assert row["personalised_perplexity"] == 1.5


def test_methods_without_rates_run_without_a_search(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    (empty_directory / "small.toml").write_text(SMALL + FLAT)
    assert compare(*WORDS, "--methods", "flat") == 0
    assert fake_runs.started == ["flat,seed=0,test", "flat,seed=1,test"]
    found = results(empty_directory)["methods"]
    assert list(found) == ["flat"]
    assert (found["flat"]["learning_rate"], found["flat"]["search"], found["flat"]["at_edge"]) == (None, {}, False)


def test_an_ablation_runs_at_the_rate_of_another_which_is_searched_but_not_compared(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    (empty_directory / "small.toml").write_text(SMALL + FLAT + 'searched-as = "mixture"')
    fake_runs.code["mixture,rate=0.2,seed=0,validation"] = "perplexity = 0.5"
    assert compare(*WORDS, "--methods", "flat") == 0
    assert fake_runs.started[3:] == ["flat,rate=0.2,seed=0,test", "flat,rate=0.2,seed=1,test"]
    assert results(empty_directory)["methods"]["flat"]["learning_rate"] == 0.2


def test_sources_run_first_and_their_directories_are_where_the_methods_prompts_come_from(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    (empty_directory / "small.toml").write_text(SMALL + SOURCED)
    assert compare(*WORDS, "--methods", "flat") == 0
    sources = [f"flat,rate={rate},seed=0,source" for rate in (0.1, 0.2, 0.4)]
    assert fake_runs.started[:6] == sources + [name.replace("source", "validation") for name in sources]
    # The source of seed 0 is there from the search.
    assert fake_runs.started[6:] == [
        f"flat,rate=0.1,seed={seed},{kind}" for seed, kind in ((1, "source"), (0, "test"), (1, "test"))
    ]
    runs = empty_directory / "out" / "runs"
    config = json.loads((runs / "flat,rate=0.1,seed=1,test" / "config.json").read_text())
    assert config["prompt-init"] == str((runs / "flat,rate=0.1,seed=1,source").resolve())
    assert (config["temperature"], results(empty_directory)["methods"]["flat"]["source"]) == (4.0, {"temperature": 9.0})


def test_a_method_whose_source_failed_does_not_run_and_the_reason_is_told(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    (empty_directory / "small.toml").write_text(SMALL + SOURCED)
    fake_runs.code["flat,rate=0.1,seed=1,source"] = "sys.exit('failed: no power')"
    assert compare(*WORDS, "--methods", "flat") == 1
    assert "flat,rate=0.1,seed=1,test" not in fake_runs.started
    assert results(empty_directory)["failed"] == {
        "flat,rate=0.1,seed=1,source": "no power",
        "flat,rate=0.1,seed=1,test": "flat,rate=0.1,seed=1,source failed: no power",
    }


def test_a_rate_that_diverges_loses_the_search_and_the_comparison_goes_on(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs.code["mixture,rate=0.1,seed=0,validation"] = "sys.exit('failed: training diverged in /tmp/a/b')"
    assert compare(*WORDS) == 0
    found = results(empty_directory)
    assert found["methods"]["mixture"]["search"]["perplexity"] == [None, 1.0, 1.0]
    assert found["methods"]["mixture"]["learning_rate"] == 0.2
    assert found["failed"] == {"mixture,rate=0.1,seed=0,validation": "training diverged in b"}
    assert (
        "- mixture,rate=0.1,seed=0,validation: training diverged in b"
        in (empty_directory / "out" / "results.md").read_text()
    )
    assert "mixture,rate=0.1,seed=0,validation: failed: training diverged" in capsys.readouterr().out


def test_a_method_without_any_rate_that_works_is_told_and_the_others_are_compared(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in (0.1, 0.2, 0.4):
        fake_runs.code[f"mixture,rate={rate},seed=0,validation"] = "sys.exit('failed: training diverged')"
    assert compare(*WORDS) == 1
    shown = capsys.readouterr().out
    assert "mixture: no rate has a result\n" in shown
    assert "2 results lack: the same command tries them again" in shown
    methods = results(empty_directory)["methods"]
    assert [len(methods[name]["runs"]) for name in ("mixture", "one-group")] == [0, 2]


def test_a_failed_run_of_the_comparison_is_named_and_the_same_command_tries_it_again(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    fake_runs.code["mixture,rate=0.1,seed=1,test"] = "sys.exit('failed: no power')"
    assert compare(*WORDS) == 1
    assert results(empty_directory)["failed"] == {"mixture,rate=0.1,seed=1,test": "no power"}
    fake_runs.code.clear()
    done = len(fake_runs.started)
    assert compare(*WORDS) == 0
    assert fake_runs.started[done:] == ["mixture,rate=0.1,seed=1,test"]
    assert results(empty_directory)["failed"] == {}


def test_a_finished_comparison_runs_nothing_again_and_leaves_the_same_results(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path
) -> None:
    assert compare(*WORDS) == 0
    before, done = results(empty_directory), len(fake_runs.started)
    assert compare(*WORDS) == 0
    assert results(empty_directory) == before
    assert len(fake_runs.started) == done


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["mixture,rate=0.2,seed=0,validation", "mixture,rate=0.1,seed=1,test"])
def test_after_ctrl_c_no_process_is_left_and_the_same_command_goes_on(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    press = "import os, signal\nos.kill(os.getppid(), signal.SIGINT)\nwhile True: pass"
    fake_runs.code[where] = press
    assert compare(*WORDS) == 130
    assert "stopped: the same command goes on from here\n" in capsys.readouterr().out
    assert all(process.poll() is not None for process in fake_runs.processes)
    assert fake_runs.started[-1] == where
    done = len(fake_runs.started)
    assert results(empty_directory)["methods"]["mixture"]["label"] == "the mixture"

    fake_runs.code.clear()
    assert compare(*WORDS) == 0
    assert fake_runs.started[done] == where
    assert len(set(fake_runs.started)) == 10
    assert len(fake_runs.started) == 11


def test_finished_runs_with_other_settings_are_an_error_that_says_what_to_do(
    compare: Fedmops, fake_runs: FakeRuns, empty_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*WORDS) == 0
    done, before = len(fake_runs.started), results(empty_directory)
    assert compare(*WORDS, "batch-size=3") == 2
    assert "holds a run with other settings: choose another --output or remove it\n" in capsys.readouterr().err
    assert (len(fake_runs.started), results(empty_directory)) == (done, before)


def test_the_processes_are_told_to_be_as_many_as_asked_for(
    compare: Fedmops, fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*WORDS, "--processes", "2") == 0
    shown = capsys.readouterr().out
    assert "search of the learning rates, on the validation split: 6 runs, 2 at a time\n" in shown
    assert "comparison, on the test split: 4 runs, 2 at a time\n" in shown
    assert shlex.split(results(Path.cwd())["command"])[-1] == "2"
