"""Whole runs of the baselines, of clients that keep their own, of personal steps and of frozen gates."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from peft import PeftModel
from rich.console import Console
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from client.adapter import AdaptedBackbone
from client.app import app as client_app
from client.evaluator import evaluate
from client.hand_written import with_hand_written_prompt
from client.partition_data import load_partition_data
from client.trainer import TrainSettings, train
from common.adapter_spec import ADAPTER_METHODS
from common.backbone import load_backbone
from common.batches import collate
from common.config import Config, read_config
from common.mixture_arrays import Arrays
from common.mixture_file import WEIGHTS, read_mixture
from common.perplexity import total
from common.wire.rounds import read_instruction
from server.app import app as server_app
from simulations.inline import run_inline
from simulations.simulate import Engine, simulate

RunConfig = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"num_virtual_tokens": 4, "lora_rank": 2}
methods = pytest.mark.parametrize("method", ADAPTER_METHODS)


class Listening:
    """The real ClientApp, and what each client was sent to train, by round."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, int], Arrays] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            told = read_instruction(message.content)
            self.sent[told.server_round, int(context.node_config["partition-id"])] = told.arrays
        return client_app(message, context)


def run(run_config: dict[str, Any], app: Any = client_app) -> Path:
    run_inline(server_app, app, run_config, run_config["num-clients"])
    return Path(run_config["run-directory"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def result_of(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def settings_of(config: Config, num_steps: int) -> TrainSettings:
    return TrainSettings(
        num_steps, config.batch_size, config.learning_rate, config.gate_learning_rate, config.balance_weight
    )


@methods
@pytest.mark.parametrize("centralised", [False, True])
def test_a_baselines_run_is_deterministic_and_trains_all_that_is_not_frozen(
    run_config: RunConfig, tmp_path: Path, method: str, centralised: bool
) -> None:
    app = Listening()
    changes = SMALL | {"method": method, "centralised": centralised}
    load_backbone.cache_clear()
    first, again = (run(run_config(run_directory=str(tmp_path / name), **changes), app) for name in ("1", "2"))
    for name in (WEIGHTS, "metrics.jsonl", "result.json", "adapter_config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    sent = app.sent[1, 0], app.sent[2, 0]
    for name, array in sent[0].items():
        assert (array != sent[1][name]).any() == (method != "ffa-lora" or "lora_A" not in name), name
    for figures in lines(first / "rounds.jsonl"):
        assert not any(figures["failed"].values())
    assert len({client for _, client in app.sent}) == (1 if centralised else 3)
    assert result_of(first)["perplexity"] != result_of(first)["backbone_perplexity"]


@methods
def test_the_run_directory_is_pefts(run_config: RunConfig, method: str) -> None:
    settings = run_config(method=method, num_rounds=1, **SMALL)
    directory = run(settings)
    config = read_config(settings)
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    app = Listening()
    run(
        run_config(method=method, run_directory=str(directory.parent / "two"), **SMALL), app
    )  # what round 2 begins with
    some = load_partition_data(config, 0, backbone).evaluation.tokenized[:1]
    tasks = sorted({row["task"] for row in result_of(directory)["tasks"]})
    batch = collate(some, 2, backbone.device)
    with AdaptedBackbone(backbone, config, tasks) as adapted, torch.no_grad():
        adapted.load_arrays(app.sent[2, 0])
        expected, _ = adapted.logits(batch)
    plain = AutoModelForCausalLM.from_pretrained(config.backbone, dtype=next(backbone.model.parameters()).dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # peft's own
        model = PeftModel.from_pretrained(plain, str(directory)).eval()
        ids = {"task_ids": torch.tensor([tasks.index(some[0].task)])} if "multitask" in method else {}
        found = model(batch.input_ids, attention_mask=batch.attention_mask, **ids).logits.float()
        alone = model.get_base_model()
    # float32 sums by another kernel, or, where the processor has it, bfloat16, rounded at 2**-8.
    tolerance = 1e-4 if alone.dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found[:, -batch.num_logits :], expected, rtol=tolerance, atol=tolerance)


def test_without_aggregation_a_client_is_its_own_trainer_to_the_bit(run_config: RunConfig) -> None:
    settings = run_config(method="lora", aggregation="none", **SMALL)
    app = Listening()
    directory = run(settings, app)
    config = read_config(settings)
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    for client in range(3):
        data = load_partition_data(config, client, backbone)
        arrays = app.sent[1, client]
        for server_round in (1, 2):
            with AdaptedBackbone(backbone, config, ()) as adapted:
                adapted.load_arrays(arrays)
                rng = np.random.default_rng([config.seed, server_round, client])
                train(adapted, data.train.tokenized, settings_of(config, config.num_local_steps), rng)
                arrays = adapted.arrays()
        with AdaptedBackbone(backbone, config, ()) as adapted:
            adapted.load_arrays(arrays)
            scores = evaluate(adapted, data.evaluation.examples, data.evaluation.tokenized).scores
        assert result_of(directory)["clients"][client]["perplexity"] == total(scores.values()).perplexity
        with AdaptedBackbone(backbone, config, ()) as saved:
            saved.load_arrays(load_file(directory / f"client-{client}" / WEIGHTS))
            assert all(np.array_equal(array, arrays[name]) for name, array in saved.arrays().items())
    assert not (directory / WEIGHTS).exists()


@pytest.mark.parametrize("changes", [{}, {"method": "prefix-tuning"}, {"aggregation": "none"}, {"centralised": True}])
def test_personal_steps_change_nothing_of_the_federated_result(
    run_config: RunConfig, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counting(tuned: Any, examples: Any, settings: TrainSettings, rng: Any) -> Any:
        steps.append(settings.num_steps)
        return train(tuned, examples, settings, rng)

    monkeypatch.setattr("client.answers.train", counting)
    without = run(run_config(run_directory=str(tmp_path / "without"), **SMALL, **changes))
    first_steps = len(steps)
    personal = run(run_config(run_directory=str(tmp_path / "with"), num_personal_steps=3, **SMALL, **changes))
    assert steps[2 * first_steps :] == [3, 3, 3]
    result, expected = result_of(personal), result_of(without)
    each = [row.pop("personalised_perplexity") for row in result["clients"]]
    assert result.pop("personalised_perplexity") == pytest.approx(float(np.exp(np.mean(np.log(each)))))
    assert result == expected
    assert each != [row["perplexity"] for row in expected["clients"]]
    if changes.get("aggregation") != "none":
        assert (personal / WEIGHTS).read_bytes() == (without / WEIGHTS).read_bytes()
    found = [line for line in lines(personal / "metrics.jsonl") if line["round"] < 3]
    assert found == lines(without / "metrics.jsonl")


# --- A frozen gate ---


@pytest.mark.parametrize("gate", ["input", "task", "both"])
def test_a_frozen_gate_stays_as_it_was_fitted_and_is_saved(run_config: RunConfig, tmp_path: Path, gate: str) -> None:
    app = Listening()
    directory = run(run_config(freeze_gate=True, gate=gate), app)
    saved = read_mixture(directory)
    assert saved.spec.frozen_gate
    of_gate = {name for name in saved.arrays if name.startswith("gate.")}
    assert of_gate == {name for name in saved.spec.all() if name.startswith("gate.")} and len(of_gate) >= 6
    assert not of_gate & saved.spec.trainable().keys()
    for name, array in saved.arrays.items():
        assert (array == app.sent[1, 0][name]).all() == (name in of_gate), name
    trained = run(run_config(gate=gate, run_directory=str(tmp_path / "trained")))
    up = [lines(each / "rounds.jsonl")[1]["bytes_up"] for each in (directory, trained)]
    assert up[0] < up[1] - 4 * 3 * 8  # at least the gate's output layer of three clients
    figures = lines(directory / "rounds.jsonl")[-1]
    assert sum(figures["expert_use"]) == pytest.approx(1.0)
    assert read_mixture(trained).spec.frozen_gate is False


# --- A hand-written prompt ---


def test_a_hand_written_prompt_is_set_beside_the_plain_one(small_run: dict[str, Any], tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in small_run.items() if key in ("backbone", "quantization", "device")]
    words += [f"{key}={small_run[key]}" for key in ("num-clients", "train-examples", "eval-examples")]
    words += ["method=hand-written", "prompt-text=Answer in short.", "num-shots=1", f"run-directory={tmp_path / 'run'}"]
    output = io.StringIO()
    directory = simulate(words, Engine.INLINE, 1, 0.0, Console(file=output, width=150))
    shown = output.getvalue()
    assert shown.count("round 1") == 1 and "round 2" not in shown
    assert "loss" not in shown and "nan" not in shown and "gate:" not in shown
    assert "hand-written" in shown and "geometric mean over clients" in shown
    assert "round 1 of 1: perplexity" in shown and "3 clients" in shown
    config = read_config(json.loads((directory / "config.json").read_text()))
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    for row in result_of(directory)["clients"]:
        data = load_partition_data(config, row["client"], backbone)
        plain = evaluate(backbone, data.evaluation.examples, data.evaluation.tokenized).scores
        asked = with_hand_written_prompt(config, data, backbone)
        prompted = evaluate(backbone, asked.examples, asked.tokenized).scores
        assert row["backbone_perplexity"] == total(plain.values()).perplexity
        assert row["perplexity"] == total(prompted.values()).perplexity != row["backbone_perplexity"]
    assert not (directory / WEIGHTS).exists()
    assert len(lines(directory / "rounds.jsonl")) == 2


def test_a_client_that_was_sent_an_adapter_that_does_not_fit_has_a_plain_backbone_again(run_config: RunConfig) -> None:
    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            arrays = message.content.array_records["arrays"]
            del arrays[next(iter(arrays))]
        return client_app(message, context)

    settings = run_config(method="lora", **SMALL)
    directory = run(settings, app)
    for figures in lines(directory / "rounds.jsonl")[1:]:
        reason = "the adapter that was sent does not fit method=lora on this backbone"
        assert figures["failed"] == {"train": {"1": reason}, "evaluate": {}}
    config = read_config(settings)
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    assert not any("lora" in name for name, _ in backbone.model.named_modules())
