"""Whole runs on a tiny backbone: centralised ones, tasks that nobody trained on, and every other kind at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import app as client_app
from client.partition_data import load_partition_data
from client.trainer import TrainSettings, train
from common.backbone import load_backbone
from common.config import read_config
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import Arrays
from common.mixture_file import WEIGHTS, read_mixture
from common.saved_run import read_run
from common.wire.rounds import read_instruction
from server.app import app as server_app
from simulations.inline import run_inline
from tests.tiny import backbone_on_disk

RunConfig = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")


class Listening:
    """The real ClientApp, and the mixtures that it was sent to train."""

    def __init__(self) -> None:
        self.sent: list[Arrays] = []

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            self.sent.append(read_instruction(message.content).arrays)
        return client_app(message, context)


def run(run_config: dict[str, Any], app: ClientApp | Listening = client_app) -> Path:
    run_inline(server_app, app, run_config, run_config["num-clients"])  # type: ignore[arg-type]
    return Path(run_config["run-directory"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Centralised ---


def test_a_centralised_run_is_the_trainer_on_all_clients_examples_to_the_bit(run_config: RunConfig) -> None:
    settings = run_config(centralised=True)
    app = Listening()
    directory = run(settings, app)

    config = read_config(settings)
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    pooled = [
        example for client in range(3) for example in load_partition_data(config, client, backbone).train.tokenized
    ]
    mixture = Mixture(read_mixture(directory).spec)
    mixture.load_arrays(app.sent[0])
    num_steps = config.num_local_steps * config.num_clients
    train_settings = TrainSettings(
        num_steps, config.batch_size, config.learning_rate, config.gate_learning_rate, config.balance_weight
    )
    losses = []
    for server_round in (1, 2):
        with PromptedBackbone(backbone, mixture) as prompted:
            rng = np.random.default_rng([config.seed, server_round, 0])
            losses.append(train(prompted, pooled, train_settings, rng).loss)
    assert len(app.sent) == 2
    saved = read_mixture(directory).arrays
    for name, array in mixture.trained_arrays().items():
        np.testing.assert_array_equal(saved[name], array, err_msg=name)
    assert [line["loss"] for line in lines(directory / "rounds.jsonl")[1:]] == losses


def test_of_a_centralised_run_one_client_trains_and_every_client_is_evaluated(run_config: RunConfig) -> None:
    directory = run(run_config(centralised=True))
    found = lines(directory / "metrics.jsonl")
    trained = [(line["round"], line["client"], line["num_examples"]) for line in found if line["phase"] == "train"]
    assert trained == [(1, 0, 2 * 3 * 4), (2, 0, 2 * 3 * 4)]
    for server_round in (1, 2):
        evaluated = {line["client"] for line in found if (line["round"], line["phase"]) == (server_round, "mixture")}
        assert evaluated == {0, 1, 2}
    result = json.loads((directory / "result.json").read_text())
    assert all("perplexity" in row for row in result["clients"])


# --- A task that nobody trained on ---


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Write tasks a and b to train and evaluate on, and unseen, which is only there to evaluate on."""
    path = tmp_path / "data.jsonl"
    with open(path, "w") as file:
        for task, splits in (("a", ("train", "test")), ("b", ("train", "test")), ("unseen", ("test",))):
            for split in splits:
                for number in range(8):
                    row = {"task": task, "split": split, "instruction": f"{task} {split}", "input": f"{number}"}
                    file.write(json.dumps(row | {"output": str(number + 1)}) + "\n")
    return str(path)


@pytest.mark.parametrize("gate", ["input", "task", "both"])
def test_a_task_that_nobody_trained_on_is_evaluated(run_config: RunConfig, data: str, gate: str) -> None:
    changes = {"data": data, "num_clients": 2, "train_examples": 100, "eval_examples": 100, "num_rounds": 1}
    directory = run(run_config(gate=gate, task_weights="learned", **changes))
    assert read_mixture(directory).spec.tasks == ("a", "b")
    rows = {row["task"]: row for row in json.loads((directory / "result.json").read_text())["tasks"]}
    assert rows.keys() == {"a", "b", "unseen"}
    assert rows["unseen"]["num_examples"] == 8
    assert np.isfinite(rows["unseen"]["perplexity"])
    assert sum(rows["unseen"]["expert_use"]) == pytest.approx(1.0, rel=1e-5)
    (figures,) = lines(directory / "rounds.jsonl")[1:]
    assert figures["failed"] == {"train": {}, "evaluate": {}}


# --- Everything at once ---

KINDS = {
    "hidden": {
        "prompt_form": "hidden",
        "prompt_positions": "answer",
        "prompt_init": "vocabulary",
        "shared_expert": True,
        "num_experts": 4,
        "gate": "both",
        "top_k": 2,
        "task_weights": "learned",
        "gate_pretraining": "kmeans",
    },
    "kv": {
        "prompt_init": "vocabulary",
        "gate": "task",
        "task_weights": "uniform",
        "gate_pretraining": "domain",
        "tasks": "6",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_deterministic_and_trains_all_that_it_sends(
    run_config: RunConfig, tmp_path: Path, kind: str
) -> None:
    app = Listening()
    first, again = (run(run_config(run_directory=str(tmp_path / name), **KINDS[kind]), app) for name in ("1", "2"))
    assert (first / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()
    saved = read_mixture(first)
    trained = saved.spec.trainable()
    for name, array in saved.arrays.items():
        assert (array != app.sent[0][name]).any() == (name in trained), name
    for figures in lines(first / "rounds.jsonl")[1:]:
        assert figures["failed"] == {"train": {}, "evaluate": {}}


def test_what_the_gate_tells_of_tasks_leaves_the_shared_expert_out(run_config: RunConfig) -> None:
    directory = run(run_config(num_experts=4, shared_expert=True, num_rounds=1))
    tasks = json.loads((directory / "result.json").read_text())["tasks"]
    mass = np.array([np.array(row["expert_use"][:3]) * row["num_examples"] for row in tasks])
    mass /= mass.sum()
    independent = np.outer(mass.sum(axis=1), mass.sum(axis=0))
    expected = (mass * np.log(mass / independent)).sum()
    assert expected > 0.1
    (figures,) = lines(directory / "rounds.jsonl")[1:]
    assert figures["task_expert_information"] == pytest.approx(expected, rel=1e-9)
    # Of all mass a half is the shared expert's.
    assert figures["expert_use"] == pytest.approx([*mass.sum(axis=0) / 2, 0.5])


def test_a_run_may_go_on_from_another(run_config: RunConfig, tmp_path: Path) -> None:
    first = run(run_config(run_directory=str(tmp_path / "1"), gate="both"))
    app = Listening()
    going_on = run_config(prompt_init=str(first), gate="both", gate_pretraining="none", num_rounds=1)
    run(going_on, app)
    for name, array in read_mixture(first).arrays.items():
        np.testing.assert_array_equal(app.sent[0][name], array, err_msg=name)


# --- A gate that reads another model ---


def test_a_gate_may_read_another_model_and_such_a_run_is_for_comparison_only(
    run_config: RunConfig, tmp_path: Path
) -> None:
    directory = run(run_config(gate_encoder=backbone_on_disk(tmp_path / "encoder")))
    spec = read_mixture(directory).spec
    assert (spec.encoder_size, spec.gate_input_size, spec.hidden_size) == (64, 64, 16)
    assert json.loads((directory / "result.json").read_text())["perplexity"] > 1
    with pytest.raises(ValueError, match="reads another model's states"):
        read_run(directory)
