"""An exchange says of every client what it did, whatever the network does."""

import logging
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.message_bytes import message_bytes
from common.wire.records import unpack_scores
from common.wire.rounds import EvaluateReply, instruction, pack_evaluate_reply
from server import exchange as module
from server.exchange import Exchanged, exchange, wait_for_nodes

TIMEOUT_SECONDS = 0.5  # long enough for an answer on a busy machine, for it is waited out


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


@pytest.fixture
def content(spec: MixtureSpec) -> RecordDict:
    return instruction(3, initial_arrays(spec, np.random.default_rng(0)))


def evaluate(network: Any, content: RecordDict, seconds: float = 60.0, read: Any = unpack_scores) -> Exchanged[Any]:
    return exchange(
        network, "evaluate", dict.fromkeys(network.nodes, content), network.nodes, seconds, read, lambda *_: None
    )


def test_replies_come_in_the_order_of_the_clients(network: Any, content: RecordDict) -> None:
    order: list[int] = []
    exchanged = exchange(
        network,
        "evaluate",
        dict.fromkeys(network.nodes, content),
        network.nodes,
        60.0,
        unpack_scores,
        lambda client, _: order.append(client),
    )
    assert order == [2, 1, 0]  # as they arrived
    assert list(exchanged.replies) == [0, 1, 2]
    assert exchanged.replies[1] == {"task 1": AnswerScore(20.0, 10, 20, 2)}
    assert exchanged.failures == {}


def test_a_client_that_raises_is_a_failure_with_its_reason(
    network: Any, clients: Any, content: RecordDict, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise OSError("the disk is full")

    clients.misbehaviour[1, "evaluate"] = fail
    exchanged = evaluate(network, content)
    assert list(exchanged.replies) == [0, 2]
    assert list(exchanged.failures) == [1]
    assert "the disk is full" in exchanged.failures[1]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"client 1 failed to evaluate: {exchanged.failures[1]}"
    ]


def test_an_error_is_the_asked_clients_though_it_names_another_node(
    network: Any, clients: Any, content: RecordDict
) -> None:
    clients.misbehaviour[2, "evaluate"] = lambda _: 1 / 0
    exchanged = evaluate(network, content)
    assert [reply.metadata.src_node_id for reply in network.received if reply.has_error()] == [1]
    assert list(exchanged.failures) == [2]


def test_of_a_long_reason_the_last_line_is_told(network: Any, clients: Any, content: RecordDict) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("Traceback\n  a line\nthe cause\n\n")

    clients.misbehaviour[0, "evaluate"] = fail
    assert "\n" not in evaluate(network, content).failures[0]


def test_a_silent_client_fails_at_the_deadline(network: Any, content: RecordDict) -> None:
    network.silent = {0, 2}
    exchanged = evaluate(network, content, TIMEOUT_SECONDS)
    assert exchanged.failures == dict.fromkeys((0, 2), f"no reply within {TIMEOUT_SECONDS} s")
    assert list(exchanged.replies) == [1]


@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [
        ("nll", [math.nan], "the score of task 'task 1' is AnswerScore(nll=nan"),
        ("nll", [-math.inf], "the score of task 'task 1' is AnswerScore(nll=-inf"),
        ("nll", 5.0, "expected a list of numbers, got 5.0"),
        ("nll", [], "shorter"),  # zip's word: fewer values than tasks
        ("num-tokens", [0], "num_tokens=0"),
        ("num-tokens", None, "'num-tokens'"),
    ],
)
def test_a_malformed_reply_is_a_failure_that_names_what_is_wrong(
    network: Any, clients: Any, content: RecordDict, key: str, values: Any, reason: str
) -> None:
    def spoil(reply: EvaluateReply) -> RecordDict:
        packed = pack_evaluate_reply(reply)
        figures = {**packed.metric_records["scores"]} | {key: values}
        packed["scores"] = MetricRecord({name: value for name, value in figures.items() if value is not None})
        return packed

    clients.misbehaviour[1, "evaluate"] = spoil
    exchanged = evaluate(network, content)
    assert list(exchanged.replies) == [0, 2]
    assert exchanged.failures[1].startswith("reply rejected: ")
    assert reason in exchanged.failures[1]


@pytest.mark.parametrize("records", [RecordDict(), RecordDict({"scores": MetricRecord({"nll": [1.0]})})])
def test_a_reply_without_its_records_is_a_failure(
    network: Any, clients: Any, content: RecordDict, records: RecordDict
) -> None:
    clients.misbehaviour[1, "evaluate"] = lambda _: records
    exchanged = evaluate(network, content)
    assert list(exchanged.failures) == [1]
    assert exchanged.failures[1].startswith("reply rejected: ")


@pytest.mark.parametrize(("quorum", "replies"), [(0.6, [0, 2]), (0.9, [0, 1, 2])])
def test_once_enough_have_replied_the_others_have_as_long_again(
    network: Any, content: RecordDict, monkeypatch: pytest.MonkeyPatch, quorum: float, replies: list[int]
) -> None:
    """By a clock that goes on by a second at every look."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    arrives = {2: 10.0, 0: 20.0, 1: 50.0}
    client_of = {node: client for client, node in network.nodes.items()}
    pull, held = network.pull_messages, []

    def pull_when_it_is_time(message_ids: Any) -> list[Any]:
        now[0] += 1.0
        if now[0] == 1.0:
            held.extend(pull(message_ids))
            held.sort(key=lambda message: arrives[client_of[message.metadata.src_node_id]])
        if held and arrives[client_of[held[0].metadata.src_node_id]] <= now[0]:
            return [held.pop(0)]
        return []

    monkeypatch.setattr(network, "pull_messages", pull_when_it_is_time)
    exchanged = exchange(
        network, "evaluate", dict.fromkeys(network.nodes, content), network.nodes, 60.0, unpack_scores,
        lambda *_: None, quorum=quorum,
    )  # fmt: skip
    assert list(exchanged.replies) == replies
    assert exchanged.failures == ({} if len(replies) == 3 else {1: "no reply within 40 s"})
    assert now[0] == (40.0 if len(replies) == 2 else 50.0)


def test_bytes_are_what_the_wire_counts_of_all_that_travelled(network: Any, clients: Any, content: RecordDict) -> None:
    clients.misbehaviour[0, "evaluate"] = lambda _: 1 / 0  # an error has no content
    clients.misbehaviour[1, "evaluate"] = lambda _: RecordDict()  # rejected, but it travelled
    exchanged = evaluate(network, content)
    assert exchanged.bytes_down == 3 * message_bytes(content)
    right = pack_evaluate_reply(clients.evaluation(2))
    assert exchanged.bytes_up == message_bytes(right) + message_bytes(RecordDict())


def test_the_log_tells_an_exchanges_replies_and_bytes(
    network: Any, clients: Any, content: RecordDict, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr.fedmops")
    clients.misbehaviour[1, "evaluate"] = lambda _: 1 / 0
    exchanged = evaluate(network, content)
    told = f"evaluate: 2 of 3 clients replied; {3 * message_bytes(content)} bytes down and {exchanged.bytes_up} up"
    assert told in caplog.text


def test_waiting_returns_the_nodes_sorted(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "get_node_ids", lambda: [30, 10, 20, 5])
    assert wait_for_nodes(network, 3, 0.0) == [5, 10, 20, 30]


def test_waiting_ends_when_enough_nodes_have_come(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], [1], [1, 2]])
    monkeypatch.setattr(network, "get_node_ids", lambda: next(answers))
    assert wait_for_nodes(network, 2, 60.0) == [1, 2]


def test_waiting_for_nodes_that_do_not_come_raises(network: Any) -> None:
    with pytest.raises(TimeoutError, match=r"num-clients is 4, but 3 nodes are connected after 0\.5 s: start more"):
        wait_for_nodes(network, 4, TIMEOUT_SECONDS)


def test_a_quorum_of_nodes_is_enough_to_begin_when_the_others_do_not_come(
    network: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert wait_for_nodes(network, 4, 0.01, quorum=0.7) == sorted(network.nodes.values())
    assert "3 nodes are connected after 0.01 s: the run begins without the others, by its quorum" in caplog.text
    with pytest.raises(TimeoutError):
        wait_for_nodes(network, 4, 0.01, quorum=0.8)


def test_a_client_whose_node_was_started_again_without_the_message_fails_at_once(
    network: Any, clients: Any, content: RecordDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    network.silent = {1}
    network.started = {0: datetime.now(UTC) - timedelta(hours=1), 1: datetime.now(UTC) + timedelta(seconds=1)}
    exchanged = evaluate(network, content)
    assert list(exchanged.replies) == [0, 2] and exchanged.lost == {1} and exchanged.unanswered == {}
    assert exchanged.failures == {1: "its node was started again, without the message"}


def test_a_reply_that_came_before_its_node_was_started_again_counts(
    network: Any, content: RecordDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    network.started = dict.fromkeys(network.nodes, datetime.now(UTC) + timedelta(hours=1))
    exchanged = evaluate(network, content)
    assert list(exchanged.replies) == [0, 1, 2] and exchanged.failures == {}
