"""A baseline's first adapter: one client draws it, the next where that fails, and none can end the run with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import load_file

from common.adapter_spec import AdapterSpec
from common.config import read_config
from common.mixture_file import CARD, WEIGHTS
from common.wire.preparation import pack_adapter
from server.app import app as server_app
from server.first_adapter import first_adapter
from server.preparation import Preparation
from server.run_directory import METRICS, RESULT, ROUNDS
from simulations.inline import InlineGrid, run_inline

RunConfig = Callable[..., dict[str, Any]]

TASKS = ("shared", "task 0", "task 1", "task 2")
A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight" for which in "AB")
SPECS = {
    "lora": AdapterSpec({A: (2, 5), B: (5, 2)}, peft_card={"peft_type": "LORA", "r": 2}),
    "ffa-lora": AdapterSpec({A: (2, 5), B: (5, 2)}, frozen=frozenset({A}), peft_card={"peft_type": "LORA", "r": 2}),
    "prefix-tuning": AdapterSpec({"prompt_embeddings": (3, 8)}, peft_card={"peft_type": "PREFIX_TUNING"}),
    "multitask-prompt-tuning": AdapterSpec(
        {"prefix_task_cols": (4, 3, 1), "prefix_task_rows": (4, 1, 5), "prompt_embeddings": (3, 5)},
        tasks=TASKS,
        peft_card={"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 4},
    ),
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(clients: Any, settings: dict[str, Any]) -> Path:
    if settings["method"] in SPECS:
        clients.spec = SPECS[settings["method"]]
    run_inline(server_app, clients.app, settings, 3)
    return Path(settings["run-directory"])


@pytest.mark.parametrize("method", SPECS)
def test_a_baseline_is_federated_as_a_mixture_is(clients: Any, run_config: RunConfig, method: str) -> None:
    directory = run(clients, run_config(method=method))
    assert [call for call in clients.calls if call[0] == "adapter"] == [("adapter", 0, 0)]
    assert not {"moments", "clusters", "vocabulary"} & {phase for phase, _, _ in clients.calls}
    saved = load_file(directory / WEIGHTS)
    spec = SPECS[method]
    assert {name: array.shape for name, array in saved.items()} == spec.all()
    for name, array in saved.items():
        # Of 7, twice the mean of 1, 2 and 3 is added; of a task's rows, what its one holder, or all, add.
        rows = [4.0, 2.0, 4.0, 6.0] if name.startswith("prefix_task") else [0.0 if name in spec.frozen else 4.0]
        added = np.asarray(rows).reshape(-1, *[1] * (array.ndim - 1))
        np.testing.assert_allclose(array, np.broadcast_to(7 + added, array.shape), atol=1e-5, err_msg=name)
    card = json.loads((directory / CARD).read_text())
    assert card == dict(spec.peft_card) | {"base_model_name_or_path": "skills"}
    result = json.loads((directory / RESULT).read_text())
    assert result["perplexity"] == pytest.approx(np.e**2)
    assert result["num_parameters"] == sum(int(np.prod(shape)) for shape in spec.trainable().values())
    for figures in lines(directory / ROUNDS)[1:]:
        assert figures["failed"] == {"train": {}, "evaluate": {}}
        assert not {"expert_use", "gate_entropy", "task_expert_information"} & figures.keys()


def test_with_plain_aggregation_rows_of_tasks_count_by_all_examples(clients: Any, run_config: RunConfig) -> None:
    saved = load_file(run(clients, run_config(method="multitask-prompt-tuning", aggregation="plain")) / WEIGHTS)
    for array in saved.values():
        np.testing.assert_allclose(array, np.full_like(array, 11.0), atol=1e-5)


def test_drawing_the_adapter_counts_among_the_bytes_before_round_1(clients: Any, run_config: RunConfig) -> None:
    def before_round_1(method: str) -> tuple[int, int]:
        directory = run(clients, run_config(method=method, run_directory=f"{run_config()['run-directory']}-{method}"))
        line = lines(directory / ROUNDS)[0]
        return line["bytes_down"], line["bytes_up"]

    clients.spec = AdapterSpec()
    clients.misbehaviour = {(client, "evaluate"): lambda reply: reply for client in range(3)}
    alone, drawn = before_round_1("hand-written"), before_round_1("lora")
    assert drawn[0] > alone[0] and drawn[1] > alone[1] + 4 * 20


def about(text: Any) -> Callable[[Any], RecordDict]:
    def spoil(arrays: Any) -> RecordDict:
        content = pack_adapter({"peft_type": "LORA"}, arrays)
        content["about"] = ConfigRecord({"peft-card": text})
        return content

    return spoil


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (lambda _: 1 / 0, "division by zero"),
    "sends nothing": (lambda _: RecordDict(), "reply rejected"),
    "sends arrays alone": (lambda arrays: RecordDict({"arrays": pack_adapter({}, arrays)["arrays"]}), "about"),
    "float64": (lambda arrays: {name: array.astype(np.float64) for name, array in arrays.items()}, "got float64"),
    "NaN": (lambda arrays: {name: array * np.float32(np.nan) for name, array in arrays.items()}, "must be finite"),
    "no arrays": (lambda _: {}, "the arrays are not those of lora"),
    "A alone": (lambda arrays: {A: arrays[A]}, "the arrays are not those of lora"),
    "a name that safetensors keeps": (lambda arrays: arrays | {"__metadata__": arrays[A]}, "not those of lora"),
    "an empty array": (lambda arrays: arrays | {B: arrays[B][:0]}, "must be finite float32"),
    "bytes that are no array": (
        lambda arrays: RecordDict(
            {
                **pack_adapter({"peft_type": "LORA"}, arrays),
                "arrays": ArrayRecord({B: Array("float32", (5, 2), "numpy.ndarray", b"garbage")}),
            }
        ),
        "cannot be read",
    ),
    "no JSON": (about("{"), "Expecting property name"),
    "a list": (about("[1]"), "must be an object"),
    "bytes": (about(b"{}"), "expected a list of texts"),
    "a number": (about(1), "expected a list of texts"),
    "nested deep": (about("[" * 50_000), "must be an object"),
    "nested": (about('{"peft_type": "LORA", "a":' + '{"a":' * 400 + "1" + "}" * 401), "must be an object"),
    "huge": (about('{"peft_type": "LORA", "a": "' + "x" * 1_000_000 + '"}'), "expected 100000 at most"),
    "no peft_type": (about("{}"), "is not that of lora"),
    "another peft_type": (about('{"peft_type": "MIXTURE_OF_PROMPTS"}'), "is not that of lora"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_when_a_client_fails_the_next_is_asked(clients: Any, run_config: RunConfig, what: str) -> None:
    spoil, reason = HOSTILE[what]
    clients.misbehaviour[0, "adapter"] = spoil
    directory = run(clients, run_config(method="lora", num_rounds=1))
    assert [call for call in clients.calls if call[0] == "adapter"] == [("adapter", 0, 0), ("adapter", 0, 1)]
    assert (directory / RESULT).exists()
    (failed,) = lines(directory / ROUNDS)[0]["failed"]["adapter"].items()
    assert failed[0] == "0" and reason in failed[1]


def test_an_adapter_that_nobody_sends_is_an_error_with_a_reason_and_leaves_nothing(
    clients: Any, run_config: RunConfig
) -> None:
    for client in range(3):
        clients.misbehaviour[client, "adapter"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match="no client sent its adapter: division by zero"):
        run(clients, run_config(method="lora"))
    assert not Path(run_config()["run-directory"]).exists()


def test_an_update_with_frozen_arrays_is_refused(clients: Any, run_config: RunConfig) -> None:
    clients.misbehaviour[1, "train"] = lambda reply: replace(
        reply, arrays=reply.arrays | {A: np.ones((2, 5), np.float32)}
    )
    directory = run(clients, run_config(method="ffa-lora", num_rounds=1))
    assert lines(directory / ROUNDS)[1]["failed"]["train"] == {"1": f"reply rejected: array {A} is unknown"}


def test_a_hand_written_prompt_is_scored_once_and_nothing_is_trained_or_saved(
    clients: Any, run_config: RunConfig
) -> None:
    clients.spec = AdapterSpec()
    directory = run(clients, run_config(method="hand-written"))
    assert [call[:2] for call in clients.calls if call[0] != "prepare"] == [("evaluate", 1)] * 3
    (figures,) = lines(directory / ROUNDS)[1:]
    assert "loss" not in figures and figures["num_clients_trained"] == 0
    assert {line["phase"] for line in lines(directory / METRICS)} == {"backbone", "mixture"}
    assert not (directory / WEIGHTS).exists() and not (directory / CARD).exists()
    assert json.loads((directory / RESULT).read_text())["num_parameters"] == 0


def test_a_hand_written_prompt_asks_nobody(clients: Any, run_config: RunConfig) -> None:
    config = read_config(run_config(method="hand-written"))
    assert first_adapter(InlineGrid(clients.app, {}, 3), config, Preparation()) == (AdapterSpec(), {})
    assert clients.calls == []
