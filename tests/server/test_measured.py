"""Measures beyond perplexity: asked for twice, checked, and kept by client and task."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict

from common.measures import MeasureSum
from common.wire.preparation import pack_prepare_reply
from common.wire.rounds import pack_evaluate_reply
from server.app import app as server_app
from server.run_directory import METRICS, RESULT, ROUNDS
from simulations.inline import run_inline

RunConfig = Callable[..., dict[str, Any]]
NAMES = "rouge-l,exact-match"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def both(value: float) -> dict[str, float]:
    return {"exact-match": value, "rouge-l": value}


@pytest.fixture
def run(clients: Any, run_config: RunConfig, tmp_path: Path) -> Callable[..., Path]:
    def start(**changes: Any) -> Path:
        run_inline(server_app, clients.app, run_config(**({"measures": NAMES} | changes)), 3)
        return tmp_path / "run"

    return start


def test_clients_tasks_and_the_whole_have_measures_before_and_after(run: Callable[..., Path]) -> None:
    result = json.loads((run() / RESULT).read_text())
    for row in result["clients"]:
        client = row["client"]
        after = both((4 + client) / 8)
        assert (row["backbone_measures"], row["measures"]) == (both(0.25), after)
        assert row["measures_by_task"] == [
            {"task": f"task {client}", "backbone_measures": both(0.25), "measures": after}
        ]
    assert (result["backbone_measures"], result["measures"]) == (both(0.25), both(5 / 8))
    assert [(row["task"], row["backbone_measures"], row["measures"]) for row in result["tasks"]] == [
        (f"task {client}", both(0.25), both((4 + client) / 8)) for client in range(3)
    ]


def test_lines_of_metrics_have_them_before_round_1_and_after_the_last(run: Callable[..., Path]) -> None:
    found = [line for line in lines(run() / METRICS) if line["phase"] != "train"]
    assert {line["round"] for line in found if "measures" in line} == {0, 2}
    assert {line["round"] for line in found if "measures" not in line} == {1}
    last = next(line for line in found if (line["round"], line["client"]) == (2, 1))
    assert last["measures"] == {name: {"sum": 1.25, "count": 2} for name in ("rouge-l", "exact-match")}


def test_the_log_tells_them(run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flwr.fedmops")
    run()
    assert "exact-match: 0.625, of the backbone alone 0.250" in caplog.text


def test_without_measures_nothing_is_different(run: Callable[..., Path]) -> None:
    directory = run(measures="")
    assert "measures" not in (directory / RESULT).read_text() + (directory / METRICS).read_text()


def test_a_client_without_a_last_reply_has_the_backbones_alone(clients: Any, run: Callable[..., Path]) -> None:
    clients.misbehaviour[1, "evaluate"] = lambda _: 1 / 0
    result = json.loads((run() / RESULT).read_text())
    assert ["measures" in row for row in result["clients"]] == [True, False, True]
    assert all(row["backbone_measures"] == both(0.25) for row in result["clients"])
    assert result["measures"] == both(5 / 8)  # of 0.5 and 0.75


def spoilt(pack: Callable[[Any], RecordDict], **changes: Any) -> Callable[[Any], RecordDict]:
    """Change what is in the record of measures, if there is one."""

    def spoil(reply: Any) -> RecordDict:
        content = pack(reply)
        if "measures" in content:
            content["measures"] = MetricRecord({**content.metric_records["measures"], **changes})
        return content

    return spoil


def measuring(task: str, name: str, value: MeasureSum) -> Callable[[Any], Any]:
    """Add a measure to a reply that has some."""

    def spoil(reply: Any) -> Any:
        if reply.measured:
            reply.measured.setdefault(task, {})[name] = value
        return reply

    return spoil


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "NaN": (spoilt(pack_evaluate_reply, sums=[math.nan, 0.0]), "measure 'rouge-l' of task 'task 0' is nan over 2"),
    "infinite": (spoilt(pack_evaluate_reply, sums=[0.0, math.inf]), "measure 'exact-match' of task 'task 0' is inf"),
    "below 0": (spoilt(pack_evaluate_reply, sums=[-1.0, 0.0]), "measure 'rouge-l' of task 'task 0' is -1.0 over 2"),
    "above all": (spoilt(pack_evaluate_reply, sums=[2.5, 0.0]), "measure 'rouge-l' of task 'task 0' is 2.5 over 2"),
    "of none": (spoilt(pack_evaluate_reply, counts=[0, 0]), "measure 'rouge-l' of task 'task 0' is 1.0 over 0"),
    "too many": (measuring("task 0", "rouge-l", MeasureSum(1.0, 3)), "is over 3 examples, expected 2 at most"),
    "unknown": (measuring("task 0", "bleu", MeasureSum(1.0, 1)), "measure 'bleu' of task 'task 0' was not asked for"),
    "other task": (measuring("task 9", "rouge-l", MeasureSum(1.0, 1)), "task 'task 9' is measured, but it has no"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_measure_is_refused_by_name(clients: Any, run: Callable[..., Path], what: str) -> None:
    spoil, reason = HOSTILE[what]
    clients.misbehaviour[0, "evaluate"] = spoil
    directory = run()
    failed = [figures["failed"] for figures in lines(directory / ROUNDS)]
    assert failed[1] == {"train": {}, "evaluate": {}}  # nothing is measured yet
    assert failed[2]["evaluate"]["0"].startswith("reply rejected: ") and reason in failed[2]["evaluate"]["0"]
    result = json.loads((directory / RESULT).read_text())
    assert result["measures"] == both(11 / 16)  # of the others


def test_a_measure_that_was_not_asked_for_yet_is_refused(clients: Any, run: Callable[..., Path]) -> None:
    def early(reply: Any) -> Any:
        reply.measured["task 0"] = {"rouge-l": MeasureSum(1.0, 1), "exact-match": MeasureSum(1.0, 1)}
        return reply

    def replaced(reply: Any) -> Any:
        return early(type(reply)(reply.scores, reply.expert_use, {}))

    clients.misbehaviour[0, "evaluate"] = replaced
    first, second = (figures["failed"]["evaluate"] for figures in lines(run() / ROUNDS)[1:])
    assert first == {"0": "reply rejected: measure 'rouge-l' of task 'task 0' was not asked for"}
    assert second == {}


def test_a_hostile_measure_of_the_backbone_leaves_the_client_out(clients: Any, run: Callable[..., Path]) -> None:
    clients.misbehaviour[0, "prepare"] = spoilt(pack_prepare_reply, sums=[math.nan] * 4)
    directory = run()
    (failed,) = lines(directory / ROUNDS)[0]["failed"]["prepare"].values()
    assert failed.startswith("reply rejected: measure 'rouge-l' of task 'task 0' is nan over 2 examples")
    assert [row["client"] for row in json.loads((directory / RESULT).read_text())["clients"]] == [1, 2]


def test_a_measure_of_the_backbone_that_nobody_asked_for_leaves_the_client_out(
    clients: Any, run: Callable[..., Path]
) -> None:
    clients.misbehaviour[0, "prepare"] = measuring("shared", "choice-accuracy", MeasureSum(1.0, 1))
    (failed,) = lines(run() / ROUNDS)[0]["failed"]["prepare"].values()
    assert failed == "reply rejected: measure 'choice-accuracy' of task 'shared' was not asked for"
