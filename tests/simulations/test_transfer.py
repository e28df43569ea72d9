"""The prompt transfer gain: each task's own prompt has the mixture's size, and a loss is as visible as a gain."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuns
from rich.console import Console

from common.backbone_source import distribution_root
from common.config import default_run_config, read_config
from common.mixture_arrays import initial_arrays
from common.mixture_file import CARD, WEIGHTS, card, weights_bytes
from common.mixture_spec import MixtureSpec, num_parameters
from simulations.sweep_transfer import transfer_by_setting
from simulations.transfer import (
    TRANSFER,
    alone_settings,
    prompt_transfer_gain,
    steps_of_equal_share,
    tokens_of_equal_parameters,
    transfer_table,
)

SPEC = MixtureSpec(4, 3, 5, 6, {1: (2, 3, 3), 2: (2, 3, 3)}, gate="both", tasks=("add", "age"))
JOINT = {"add": 3.0, "age": 8.0}  # perplexity by task


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    """Leave the files of a finished joint run on two tasks."""
    run = tmp_path / "joint"
    run.mkdir()
    settings = default_run_config(distribution_root()) | {"gate": "both", "temperature": 6, "seed": 0}
    rows = [
        {"task": task, "num_examples": 10, "backbone_perplexity": 16.0, "perplexity": value}
        for task, value in JOINT.items()
    ]
    files = {"config.json": settings, "versions.json": {"commit": "c0ffee"}, "result.json": {"tasks": rows}}
    for name, content in (files | {CARD: card(SPEC, "skills", "f00", 8)}).items():
        (run / name).write_text(json.dumps(content))
    (run / WEIGHTS).write_bytes(weights_bytes(initial_arrays(SPEC, np.random.default_rng(0))))
    return run


def test_one_groups_tokens_give_it_as_many_parameters_as_the_mixture() -> None:
    token = 2 * 2 * (2 * 3)  # keys and values, two layers, two heads of size 3
    pool, input_gate, task_gate = 4 * 3 * token, (6 * 5 + 5) + (5 * 4 + 4), 2 * 16 + 16 * 16 + 4 * 16
    assert num_parameters(SPEC) == pool + input_gate + task_gate
    assert tokens_of_equal_parameters(SPEC) == round((pool + input_gate + task_gate) / token)


def test_a_run_alone_has_one_client_one_task_and_no_gate_and_is_valid() -> None:
    config: dict[str, Any] = default_run_config(distribution_root())
    config |= {"gate": "both", "top-k": 2, "shared-expert": True, "task-weights": "learned", "centralised": True}
    alone = read_config(alone_settings(config | {"learning-rate": 0.5, "num-rounds": 3}, "add", 52, 7))
    assert (alone.tasks, alone.num_clients, alone.num_experts, alone.tokens_per_expert) == ("add", 1, 1, 52)
    assert (alone.learning_rate, alone.num_rounds, alone.num_local_steps) == (0.5, 3, 7)
    assert not (alone.shared_expert or alone.centralised or alone.top_k)


@pytest.mark.parametrize(
    ("fraction", "num_tasks", "steps"), [(1.0, 20, 12), (0.5, 20, 6), (1.0, 7, 34), (1.0, 1000, 1), (0.01, 2, 15)]
)
def test_a_tasks_share_of_the_updates_is_equal(fraction: float, num_tasks: int, steps: int) -> None:
    config = {"client-fraction": fraction, "num-clients": 8, "num-local-steps": 30}
    assert steps_of_equal_share(config, num_tasks) == steps


def test_settings_that_one_group_does_not_have_change_nothing() -> None:
    config: dict[str, Any] = default_run_config(distribution_root())
    other = config | {"gate": "task", "temperature": 2.0, "gate-pretraining": "kmeans", "name": "another"}
    assert alone_settings(config, "add", 52, 7) == alone_settings(other, "add", 52, 7)
    assert alone_settings(config, "add", 52, 7) != alone_settings(config | {"seed": 1}, "add", 52, 7)


def test_gains_are_relative_reductions_and_negative_transfer_shows(fake_runs: FakeRuns, joint: Path) -> None:
    told: list[tuple[int, int]] = []
    # A fake run's perplexity is its temperature, whose default is 1: the settings of a run alone have it.
    fake_runs.always = "perplexity = 6.0"
    found = prompt_transfer_gain(joint, joint / "alone", 2, lambda done, count: told.append((done, count)))
    by_task = {row["task"]: row for row in found["tasks"]}
    assert by_task["add"]["alone_perplexity"] == by_task["age"]["alone_perplexity"] == 6.0
    assert by_task["add"]["gain"] == pytest.approx(0.5)
    assert by_task["age"]["gain"] == pytest.approx(1 - 8 / 6)
    assert found["prompt_transfer_gain"] == pytest.approx((0.5 + 1 - 8 / 6) / 2)
    assert found["num_negative"] == 1
    assert found["joint_to_alone"] == pytest.approx((3 / 6 * 8 / 6) ** 0.5)
    assert sorted(told) == [(1, 2), (2, 2)]
    assert json.loads((joint / TRANSFER).read_text()) == found
    console = Console(record=True, width=100)
    console.print(transfer_table(found))
    assert "2 tasks, 1 with negative transfer" in (text := console.export_text())
    assert "+50%" in text and "-33%" in text and "+8%" in text


def test_what_is_trained_is_not_trained_again(fake_runs: FakeRuns, joint: Path) -> None:
    prompt_transfer_gain(joint, joint / "alone", 1)
    prompt_transfer_gain(joint, joint / "alone", 1)
    assert [name.split("-")[0] for name in fake_runs.started] == ["add", "age"]


def test_a_training_that_fails_is_named_with_its_reason(fake_runs: FakeRuns, joint: Path) -> None:
    fake_runs.always = "if settings['tasks'] == 'age': sys.exit('the disk is full')"
    with pytest.raises(RuntimeError, match=r"could not be trained alone \(.*age-.*\): the disk is full"):
        prompt_transfer_gain(joint, joint / "alone", 1)
    assert not (joint / TRANSFER).exists()


def test_a_run_without_result_is_refused(joint: Path) -> None:
    (joint / "result.json").unlink()
    with pytest.raises(RuntimeError, match="left no result"):
        prompt_transfer_gain(joint, joint / "alone", 1)


# --- Of a sweep ---


def test_a_sweeps_gains_are_by_setting_over_seeds_and_trainings_are_shared(
    fake_runs: FakeRuns, joint: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    for temperature in (10.0, 2.0):
        for seed in (0, 1):
            run = sweep / "runs" / f"temperature={temperature:g},seed={seed}"
            shutil.copytree(joint, run)
            settings = json.loads((run / "config.json").read_text())
            (run / "config.json").write_text(json.dumps(settings | {"temperature": temperature, "seed": seed}))
    (sweep / "sweep.json").write_text(json.dumps({"axes": {"temperature": [10.0, 2.0]}}))
    fake_runs.always = "perplexity = 6.0 if settings['seed'] else 12.0"
    console = Console(record=True, width=100)
    console.print(transfer_by_setting(sweep, sweep / "alone", 2, lambda done, count: None))
    assert len(fake_runs.started) == 4  # two tasks and two seeds, whatever the temperature
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "of 4" in line]
    gains = [(1 - 3 / 12 + 1 - 8 / 12) / 2, (1 - 3 / 6 + 1 - 8 / 6) / 2]
    mean, ratio = sum(gains) / 2, (3 * 8 / 12**2 * 3 * 8 / 6**2) ** 0.25
    assert [line[:2] for line in lines] == [["2", f"{mean:+.1%}"], ["10", f"{mean:+.1%}"]]
    assert lines[0][3:] == [f"{ratio:.3f}", "1", "of", "4"]
    written = json.loads((sweep / "transfer.json").read_text())
    assert written["axes"] == ["temperature"]
    order = [(row["settings"]["temperature"], row["seed"]) for row in written["runs"]]
    assert order == [(2.0, 0), (2.0, 1), (10.0, 0), (10.0, 1)]  # as the plot shows them
    assert (sweep / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_a_sweep_without_results_has_no_gain(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"axes": {"temperature": [1.0]}}))
    with pytest.raises(RuntimeError, match=r"no run of the sweep in .* has a result"):
        transfer_by_setting(tmp_path, tmp_path / "alone", 1, lambda done, count: None)
