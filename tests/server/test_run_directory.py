"""The run directory holds all of a run, is whole at any moment, and never takes what is not its own."""

import json
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, read_config
from common.mixture_arrays import initial_arrays
from common.mixture_file import card, read_mixture
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.rounds import TrainReply
from server import run_directory as module
from server.app import app as server_app
from server.run_directory import METRICS, RESULT, ROUNDS, RunDirectory, new_run_directory
from server.run_log import RunLog
from simulations.inline import run_inline

RunConfig = Callable[..., dict[str, Any]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(clients: Any, run_config: RunConfig, tmp_path: Path) -> Path:
    run_inline(server_app, clients.app, run_config(client_fraction=0.67), 3)
    return tmp_path / "run"


def test_a_run_leaves_these_files_and_no_part_of_one(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "rounds.jsonl",
        "run.log",
        "versions.json",
    ]


def test_the_configuration_is_kept_complete(run: Path, run_config: RunConfig) -> None:
    assert json.loads((run / "config.json").read_text()) == run_config(client_fraction=0.67)


def test_versions_and_commit_are_kept(run: Path) -> None:
    versions = json.loads((run / "versions.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", versions.pop("commit"))
    assert versions["flwr"] == version("flwr")
    assert versions["torch"] == version("torch")
    assert all(versions.values())


def test_outside_a_checkout_the_commit_is_unknown(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "distribution_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    RunDirectory(tmp_path / "run", config).close()
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["commit"] == "unknown"


def test_metrics_have_a_line_for_each_round_client_task_and_phase(run: Path) -> None:
    found = [(line["round"], line["phase"], line["client"], line.get("task")) for line in lines(run / METRICS)]
    trained = {1: [0, 2], 2: [0, 2]}
    sampled = [(number, client) for number, phase, client, _ in found if phase == "train"]
    assert len(sampled) == len({*sampled}) == 4  # two of three clients, twice
    assert {number for number, _ in sampled} == {*trained}
    rest = [line for line in found if line[1] != "train"]
    backbone = [(0, "backbone", client, task) for client in range(3) for task in (f"task {client}", "shared")]
    mixture = [(number, "mixture", client, f"task {client}") for number in (1, 2) for client in range(3)]
    assert sorted(rest) == sorted(backbone + mixture)


def test_a_line_of_scores_has_the_sums_and_what_is_made_of_them(run: Path) -> None:
    (line,) = [each for each in lines(run / METRICS) if (each["round"], each.get("task")) == (2, "task 1")]
    perplexity = pytest.approx(np.exp(2.0))
    bits = pytest.approx(20 / 20 / np.log(2))
    assert line == {
        "round": 2,
        "phase": "mixture",
        "client": 1,
        "task": "task 1",
        "nll": 20.0,
        "num_tokens": 10,
        "num_characters": 20,
        "num_examples": 2,
        "perplexity": perplexity,
        "bits_per_character": bits,
    }


def test_a_line_of_training_has_the_shares_of_the_experts(directory: RunDirectory) -> None:
    directory.add_training(4, 2, TrainReply({}, 1.25, 8, np.array([6.0, 2.0, 0.0]), 0.5))
    assert lines(directory.path / METRICS) == [
        {
            "round": 4,
            "phase": "train",
            "client": 2,
            "loss": 1.25,
            "num_examples": 8,
            "expert_use": [0.75, 0.25, 0.0],
            "gate_entropy": 0.5,
        }
    ]


def test_a_line_of_a_round_has_these_fields(clients: Any, run_config: RunConfig, tmp_path: Path) -> None:
    run_inline(server_app, clients.app, run_config(), 3)
    before, first, second = lines(tmp_path / "run" / ROUNDS)
    assert before.pop("seconds") > 0
    assert before.pop("bytes_down") > 0 < before.pop("bytes_up")
    assert before == {
        "round": 0,
        "perplexity": pytest.approx(np.exp(3.0)),
        "bits_per_character": pytest.approx(180 / 120 / np.log(2)),
        "num_clients_evaluated": 3,
        "failed": {"prepare": {}, "moments": {}},
    }
    assert (first.pop("round"), second.pop("round")) == (1, 2)
    assert first.pop("seconds") > 0
    assert first.pop("bytes_down") > first.pop("bytes_up") > 0
    # The mass of each task, a row, over that if its share of all and the expert's were independent.
    usage = ([8, 0, 0], [2, 6, 0], [1, 3, 4])
    of_expert = [11, 9, 4]
    information = sum(
        mass / 24 * np.log(mass / 24 / (1 / 3 * total / 24))
        for row in usage
        for mass, total in zip(row, of_expert, strict=True)
        if mass
    )
    assert first == {
        "loss": 2.0,
        "perplexity": pytest.approx(np.exp(2.0)),  # the geometric mean of exp(1), exp(2), exp(3)
        "bits_per_character": pytest.approx(60 / 60 / np.log(2)),
        "num_clients_trained": 3,
        "num_clients_evaluated": 3,
        "failed": {"train": {}, "evaluate": {}},
        "resting": [],
        "joined": [],
        "away": [],
        "late": [],
        "expert_use": pytest.approx([11 / 24, 9 / 24, 4 / 24]),
        "smallest_expert_use": pytest.approx(4 / 24),
        "task_expert_information": pytest.approx(information),
        "gate_entropy": 0.5,
    }


DATA = {
    "train": {"num_examples": 17, "num_answers_too_long": 1, "num_prompts_too_long": 0, "num_prompts_cut": 3},
    "evaluation": {"num_examples": 6, "num_answers_too_long": 0, "num_prompts_too_long": 2, "num_prompts_cut": 1},
    "num_bad_rows": 5,
    "is_own": False,
}


def test_the_result_sets_each_client_beside_its_backbone(clients: Any, run_config: RunConfig, tmp_path: Path) -> None:
    run_inline(server_app, clients.app, run_config(), 3)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert result["perplexity"] == pytest.approx(np.exp(2.0))
    assert result["backbone_perplexity"] == pytest.approx(np.exp(3.0))
    assert result["data"] == {
        "train": {"num_examples": 51, "num_answers_too_long": 3, "num_prompts_too_long": 0, "num_prompts_cut": 9},
        "evaluation": {"num_examples": 18, "num_answers_too_long": 0, "num_prompts_too_long": 6, "num_prompts_cut": 3},
        "num_bad_rows": 5,  # of one data set, which all clients share
        "is_own": False,
    }
    assert result["clients"][1] == {
        "client": 1,
        "quantization": "none",
        "tasks": ["task 1", "shared"],
        "num_training_examples": 16,
        "data": DATA,
        "num_examples": 4,
        "num_tokens": 20,
        "backbone_perplexity": pytest.approx(np.exp(3.0)),
        "backbone_bits_per_character": pytest.approx(60 / 40 / np.log(2)),
        "perplexity": pytest.approx(np.exp(2.0)),
        "bits_per_character": pytest.approx(20 / 20 / np.log(2)),
    }


def test_the_saved_mixture_has_the_shapes_of_its_card(run: Path, spec: MixtureSpec) -> None:
    written = json.loads((run / "adapter_config.json").read_text())
    assert (written["server_round"], written["base_model_name_or_path"]) == (2, "skills")
    kv_shapes = {int(layer): tuple(sizes) for layer, sizes in written["kv_shapes"].items()}
    sizes = [written[key] for key in ("num_experts", "tokens_per_expert", "gate_hidden_size", "hidden_size")]
    described = MixtureSpec(*sizes, kv_shapes)
    saved = read_mixture(run)
    assert saved.fingerprint == "5a" * 16
    assert saved.spec == described == spec
    assert {name: array.shape for name, array in saved.arrays.items()} == described.all()
    assert {array.dtype for array in saved.arrays.values()} == {np.dtype(np.float32)}


def test_a_crash_while_saving_leaves_the_mixture_as_it_was(
    directory: RunDirectory, spec: MixtureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (initial_arrays(spec, np.random.default_rng(seed)) for seed in (1, 2))
    directory.save_mixture(first, card(spec, "tiny", "same", 1))

    def crash(part: Path, target: Path) -> None:
        assert part.read_bytes()
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no space left"):
            directory.save_mixture(second, card(spec, "tiny", "same", 2))
    for name, array in read_mixture(directory.path).arrays.items():
        np.testing.assert_array_equal(array, first[name])

    directory.save_mixture(second, card(spec, "tiny", "same", 2))
    assert [path.name for path in directory.path.iterdir() if path.name.startswith(".")] == []


def test_the_log_has_a_line_a_round_and_ends_with_the_run(clients: Any, run_config: RunConfig, tmp_path: Path) -> None:
    clients.misbehaviour[1, "train"] = lambda _: 1 / 0
    run_inline(server_app, clients.app, run_config(), 3)
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("INFO round ") == 2
    assert log.count("WARNING client 1 failed to train: division by zero\n") == 2
    run_inline(server_app, clients.app, run_config(run_directory=str(tmp_path / "second")), 3)
    assert (tmp_path / "run" / "run.log").read_text() == log


def test_an_existing_run_is_refused_and_stays(run: Path, clients: Any, run_config: RunConfig) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already: name another or remove it"):
        run_inline(server_app, clients.app, run_config(), 3)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_failed_preparation_leaves_nothing(clients: Any, run_config: RunConfig, tmp_path: Path) -> None:
    for client in range(3):
        clients.misbehaviour[client, "prepare"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match="no client could prepare"):
        run_inline(server_app, clients.app, run_config(), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_leaves_files_alone_that_are_not_the_runs(
    clients: Any, run_config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for client in range(3):
        clients.misbehaviour[client, "prepare"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match="no client could prepare"):
        run_inline(server_app, clients.app, run_config(), 3)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_too_few_nodes_leave_nothing(
    clients: Any, run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app.CONNECT_SECONDS", 0.0)
    with pytest.raises(TimeoutError, match="num-clients is 4, but 3 nodes"):
        run_inline(server_app, clients.app, run_config(num_clients=4), 3)
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_is_named_after_time_and_run(run_config: RunConfig) -> None:
    path = new_run_directory(read_config(run_config(run_directory="", name="try-1")))
    assert re.fullmatch(r"runs/\d{8}-\d{6}-try-1", str(path))


def test_a_line_is_in_the_file_at_once(directory: RunDirectory) -> None:
    directory.add_scores(1, "mixture", 0, {"a": AnswerScore(1.0, 1, 1, 1), "b": AnswerScore(2.0, 1, 1, 1)})
    assert [line["task"] for line in lines(directory.path / METRICS)] == ["a", "b"]
    directory.add_round({"round": 1})
    assert lines(directory.path / ROUNDS) == [{"round": 1}]


def test_a_directory_that_another_process_writes_to_is_refused(tmp_path: Path, config: Config) -> None:
    held = RunLog(tmp_path / "run.log")
    held.hold(0.0)
    try:
        with pytest.raises(ValueError, match=r"another process writes to run-directory .*: end it first"):
            RunDirectory(tmp_path, config)
    finally:
        held.close()
    RunDirectory(tmp_path, config).close()
