"""Whatever a client sends, the run goes on without it, names it, and the others' mixture is what it would be."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.mixture_file import WEIGHTS, read_mixture
from common.wire.preparation import pack_prepare_reply
from common.wire.rounds import EvaluateReply, pack_evaluate_reply, pack_train_reply
from server.app import app as server_app
from server.run_directory import METRICS, RESULT, ROUNDS
from simulations.inline import run_inline

RunConfig = Callable[..., dict[str, Any]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def with_metrics(**changes: Any) -> Callable[[Any], RecordDict]:
    def spoil(reply: Any) -> RecordDict:
        content = pack_train_reply(reply)
        content["metrics"] = MetricRecord({**content.metric_records["metrics"], **changes})
        return content

    return spoil


def with_score(**changes: Any) -> Callable[[Any], RecordDict]:
    def spoil(reply: Any) -> RecordDict:
        scores = {task: replace(score, **changes) for task, score in reply.scores.items()}
        return pack_evaluate_reply(replace(reply, scores=scores))

    return spoil


def with_prepared(**changes: Any) -> Callable[[Any], Any]:
    return lambda reply: replace(reply, **changes)


def with_array(array: Array) -> Callable[[Any], RecordDict]:
    def spoil(reply: Any) -> RecordDict:
        content = pack_train_reply(reply)
        content["arrays"] = ArrayRecord({**content.array_records["arrays"], "pool.keys.1": array})
        return content

    return spoil


def with_about(**changes: Any) -> Callable[[Any], RecordDict]:
    def spoil(reply: Any) -> RecordDict:
        content = pack_prepare_reply(reply)
        content["about"] = ConfigRecord({**content.config_records["about"], **changes})
        return content

    return spoil


def with_data(**changes: Any) -> Callable[[Any], RecordDict]:
    def spoil(reply: Any) -> RecordDict:
        content = pack_prepare_reply(reply)
        content["data"] = ConfigRecord({**content.config_records["data"], **changes})
        return content

    return spoil


def with_nan(reply: Any) -> Any:
    return replace(reply, arrays=reply.arrays | {"pool.keys.1": reply.arrays["pool.keys.1"] * np.float32(np.nan)})


def with_use(reply: Any, use: Any) -> RecordDict:
    content = pack_evaluate_reply(reply)
    content["gate"] = ArrayRecord({"expert-use": Array(use)})
    return content


def of_another_task(reply: Any) -> Any:
    """Score a task that the client did not name before round 1."""
    return EvaluateReply({"new": reply.scores["task 0"]}, {"new": reply.expert_use["task 0"]})


EMPTY = Array(dtype="float32", shape=(3, 2, 2, 4), stype="numpy.ndarray", data=b"")
HOSTILE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "raises": ("train", lambda _: 1 / 0),
    "sends NaN": ("train", with_nan),
    "sends nothing": ("train", lambda _: RecordDict()),
    "sends no loss": ("train", lambda reply: RecordDict({"arrays": pack_train_reply(reply)["arrays"]})),
    "sends an empty array": ("train", with_array(EMPTY)),
    "num-examples is inf": ("train", with_metrics(**{"num-examples": math.inf})),
    "num-examples is a list": ("train", with_metrics(**{"num-examples": [8]})),
    "loss is NaN": ("train", with_metrics(loss=math.nan)),
    "gate-entropy is NaN": ("train", with_metrics(**{"gate-entropy": math.nan})),
    "usage is a number": ("train", with_metrics(usage=8.0)),
    "raises in evaluate": ("evaluate", lambda _: 1 / 0),
    "nll is NaN": ("evaluate", with_score(nll=math.nan)),
    "nll is far below 0": ("evaluate", with_score(nll=-1e9)),
    "no characters": ("evaluate", with_score(num_characters=0)),
    "num-tokens is inf": ("evaluate", with_score(num_tokens=math.inf)),
    "expert-use is NaN": ("evaluate", lambda reply: with_use(reply, np.full((1, 3), math.nan))),
    "expert-use is negative": ("evaluate", lambda reply: with_use(reply, np.array([[2.0, -1.0, 0.0]]))),
    "expert-use has another shape": ("evaluate", lambda reply: with_use(reply, np.ones((2, 3)))),
    "expert-use is no number": ("evaluate", lambda reply: with_use(reply, np.array([["a", "b", "c"]]))),
    "expert-use is all 0": ("evaluate", lambda reply: with_use(reply, np.zeros((1, 3)))),
    "expert-use is huge": ("evaluate", lambda reply: with_use(reply, np.full((1, 3), 1e308))),
    "task-examples are of no task": ("train", with_metrics(**{"task-examples": [1.0]})),
    "raises in prepare": ("prepare", lambda _: 1 / 0),
    "statistics are NaN": ("prepare", with_prepared(sums=np.full((2, 5), math.nan))),
    "statistics have another shape": ("prepare", with_prepared(sums=np.zeros((2, 4)))),
    "no examples of a task": ("prepare", with_prepared(counts=np.zeros(2))),
    "too few kv-shapes": ("prepare", with_about(**{"kv-shapes": [1, 4]})),
    "fewer domains than tasks": ("prepare", with_prepared(domains=["text"])),
    "no counts of its data": ("prepare", with_data(train=[])),
    "counts of its data are no numbers": ("prepare", with_data(train=["many", 0, 0, 0])),
    "fewer examples than it trains on": ("prepare", with_data(train=[15, 0, 0, 0])),
    "examples left out below 0": ("prepare", with_data(train=[16, -1, 1, 0])),
    "more cut than there are": ("prepare", with_data(evaluation=[4, 0, 0, 5])),
    "bad rows below 0": ("prepare", with_data(**{"num-bad-rows": -1})),
    "is-own is a number": ("prepare", with_data(**{"is-own": 1})),
    "raises in moments": ("moments", lambda _: 1 / 0),
    "moments are NaN": ("moments", lambda moments: moments * np.float32(math.nan)),
    "moments are not square": ("moments", lambda moments: moments[:2]),
    "moments have another size": ("moments", lambda moments: moments[:2, :2]),
    "moments are of no data": ("moments", lambda moments: -100 * moments),
    "other kv-shapes": ("prepare", with_prepared(kv_shapes={1: (9, 9, 9), 2: (1, 4, 4)})),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_no_client_can_end_the_run_or_spoil_the_mixture(
    clients: Any, run_config: RunConfig, tmp_path: Path, what: str
) -> None:
    phase, misbehaviour = HOSTILE[what]
    clients.misbehaviour[0, phase] = misbehaviour
    run_inline(server_app, clients.app, run_config(), 3)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    rows = [row for row in result["clients"] if row["client"] != 0]
    assert [row["perplexity"] for row in rows] == pytest.approx([math.e**2, math.e**3])
    assert math.isfinite(result["perplexity"])
    assert all(np.isfinite(array).all() for array in read_mixture(tmp_path / "run").arrays.values())
    if phase in ("train", "evaluate"):
        for figures in lines(tmp_path / "run" / ROUNDS)[1:]:
            assert list(figures["failed"][phase]) == ["0"]


def test_a_task_that_a_client_did_not_name_before_is_in_no_result(
    clients: Any, run_config: RunConfig, tmp_path: Path
) -> None:
    clients.misbehaviour[0, "evaluate"] = of_another_task
    run_inline(server_app, clients.app, run_config(), 3)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert [row["task"] for row in result["tasks"]] == ["task 1", "task 2"]


def test_a_failing_client_is_named_with_its_reason_in_directory_and_log(
    clients: Any, run_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[1, "train"] = with_nan
    run_inline(server_app, clients.app, run_config(), 3)
    reason = "reply rejected: array pool.keys.1 holds values that are not finite"
    for figures in lines(tmp_path / "run" / ROUNDS)[1:]:
        assert figures["failed"] == {"train": {"1": reason}, "evaluate": {}}
    assert caplog.text.count(f"client 1 failed to train: {reason}") == 2
    trained = [line["client"] for line in lines(tmp_path / "run" / METRICS) if line["phase"] == "train"]
    assert trained == [0, 2] * 2


def test_a_client_that_never_scored_has_no_perplexity_in_the_result(
    clients: Any, run_config: RunConfig, tmp_path: Path
) -> None:
    clients.misbehaviour[1, "evaluate"] = lambda _: 1 / 0
    run_inline(server_app, clients.app, run_config(), 3)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert ["perplexity" in row for row in result["clients"]] == [True, False, True]
    # Both geometric means are over the same clients: 0 and 2, of exp(1), exp(3) and, alone, exp(2), exp(4).
    assert result["perplexity"] == pytest.approx(math.e**2)
    assert result["backbone_perplexity"] == pytest.approx(math.e**3)


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_round_without_a_usable_reply_ends_the_run_with_a_reason(
    clients: Any, run_config: RunConfig, tmp_path: Path, phase: str
) -> None:
    for client in range(3):
        clients.misbehaviour[client, phase] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match=r"round 1: no client sent .*; client 0: .*division by zero"):
        run_inline(server_app, clients.app, run_config(), 3)
    assert (tmp_path / "run" / METRICS).read_text().count("backbone") == 6
    assert not (tmp_path / "run" / RESULT).exists()
    assert (tmp_path / "run" / WEIGHTS).exists() == (phase == "evaluate")
