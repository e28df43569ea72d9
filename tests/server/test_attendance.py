"""Who is asked: clients that fail again and again rest, late ones are left in peace, and nothing is asked of nobody."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import card
from common.mixture_spec import MixtureSpec
from server import attempts
from server import attendance as module
from server import exchange as exchange_module
from server.attendance import Attendance
from server.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from server.run_directory import METRICS, ROUNDS, RunDirectory
from server.strategy import MixtureStrategy

NODES = {0: 1000, 1: 1001, 2: 1002}
ONLINE = set(NODES.values())


@pytest.fixture
def run(
    network: Any, spec: MixtureSpec, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Run rounds; return their figures."""
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.001)

    def run(num_rounds: int, **changes: Any) -> list[dict[str, Any]]:
        first: Arrays = initial_arrays(spec, np.random.default_rng(0))
        given: dict[str, Any] = {"client_fraction": 1.0, "seed": 0, "timeout_seconds": 60.0}
        strategy = MixtureStrategy(spec, card(spec, "tiny", "same", 0), network.nodes, **(given | changes))
        strategy.run(network, first, num_rounds, directory)
        return lines(directory.path / ROUNDS)

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_that_always_fails_is_asked_ever_less_often():
    attendance, asked_in = Attendance(60.0), []
    for server_round in range(1, 31):
        asked = attendance.present(NODES, ONLINE, server_round)
        assert {0, 1} <= asked.keys()
        if 2 in asked:
            asked_in.append(server_round)
        assert attendance.resting(server_round) == ([] if 2 in asked else [2])
        attendance.note(server_round, asked, {2})
    assert asked_in == [1, 2, 3, 5, 8, 13, 22]  # rests of 1, 2, 4 and then 8 rounds


def test_a_reply_ends_a_row_of_failures():
    attendance = Attendance(60.0)
    for server_round, failed in enumerate([{2}, {2}, set(), {2}, {2}], 1):
        attendance.note(server_round, NODES, failed)
    assert attendance.resting(6) == []
    attendance.note(6, NODES, {2})
    assert attendance.resting(7) == [2]
    assert attendance.present(NODES, ONLINE, 7) == {0: 1000, 1: 1001}
    assert attendance.present(NODES, ONLINE, 8) == NODES
    attendance.note(8, NODES, set())
    attendance.note(9, NODES, {2})
    assert attendance.resting(10) == []


def test_where_all_who_are_there_rest_they_are_asked_and_not_those_who_are_away():
    attendance = Attendance(60.0)
    for server_round in (1, 2, 3):
        attendance.note(server_round, NODES, {0})
    assert attendance.present(NODES, {1000}, 4) == {0: 1000}
    assert attendance.present(NODES, set(), 4) == NODES


def test_where_all_rest_all_are_asked():
    attendance = Attendance(60.0)
    for server_round in (1, 2, 3):
        attendance.note(server_round, NODES, NODES)
    assert attendance.resting(4) == [0, 1, 2]
    assert attendance.present(NODES, ONLINE, 4) == NODES


def test_one_that_still_works_is_not_asked_until_it_has_had_its_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    attendance = Attendance(60.0)
    attendance.wait_for({"a message": 1}, sent=90.0)
    attendance.note(1, NODES, {1})
    attendance.note(2, NODES, {1})
    assert attendance.present(NODES, ONLINE, 3) == {0: 1000, 2: 1002}
    assert attendance.resting(3) == [] and attendance.failed == {}  # it may still reply
    now[0] = 150.0
    assert attendance.present(NODES, ONLINE, 3) == NODES
    attendance.note(3, NODES, {1})
    assert attendance.failed == {1: 1}


def test_a_late_reply_is_counted_and_its_client_asked_again(run, network, clients):
    network.silent = {1}

    def awaken(reply: Any) -> Any:
        if [call for call in clients.calls if call[0] == "train"][-1][1] == 3:
            network.silent = set()
        return reply

    clients.misbehaviour[2, "train"] = awaken
    figures = run(5, quorum=0.6)
    assert [list(row["failed"]["train"]) for row in figures] == [["1"], [], [], [], []]
    assert [row["late"] for row in figures] == [[], [], [1], [], []]
    assert [row["num_clients_trained"] for row in figures] == [2, 2, 2, 3, 3]
    assert [row["num_clients_evaluated"] for row in figures] == [2, 2, 3, 3, 3]
    assert [call for call in clients.calls if call[2] == 1][:2] == [("train", 1, 1), ("evaluate", 3, 1)]


def test_one_that_fails_rests_and_is_asked_again_and_at_the_end(run, clients):
    clients.misbehaviour[2, "train"] = lambda _: 1 / 0
    figures = run(6)
    assert [row["resting"] for row in figures] == [[], [], [], [2], [], [2]]
    assert [list(row["failed"]["train"]) for row in figures] == [["2"], ["2"], ["2"], [], ["2"], []]
    assert [row["num_clients_evaluated"] for row in figures] == [3, 3, 3, 2, 3, 3]  # the last round's make the result


def test_a_round_that_nobody_answers_is_tried_again(run, clients, directory, caplog):
    calls = []

    def fail_twice(reply: Any) -> Any:
        calls.append(1)
        return reply if len(calls) > 2 * 3 else 1 / 0

    clients.misbehaviour = {(client, "train"): fail_twice for client in range(3)}
    (figures,) = run(1, attempts=3)
    assert len(calls) == 9 and figures["num_clients_trained"] == 3 and not figures["failed"]["train"]
    assert "train: attempt 3 of 3 follows, with 3 clients" in caplog.text
    assert len([row for row in lines(directory.path / METRICS) if row["phase"] == "train"]) == 3
    assert figures["bytes_down"] % 4 == 0  # three times to train, once to evaluate


def test_after_the_last_attempt_the_run_ends_with_the_reason(run, clients):
    clients.misbehaviour = {(client, "evaluate"): lambda _: 1 / 0 for client in range(3)}
    with pytest.raises(RuntimeError, match="round 1: no client sent its scores; client 0: division by zero"):
        run(1, attempts=2)
    assert [call[0] for call in clients.calls] == ["train"] * 3 + ["evaluate"] * 6


class Comings:
    """A grid that says, look by look, which of its nodes are there; the last from then on."""

    def __init__(self, *looks: set[int]) -> None:
        self.looks = [*looks]

    def get_node_ids(self) -> list[int]:
        return [NODES[client] for client in (self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])]


def test_one_that_has_just_gone_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETURN_SECONDS", 60.0)
    attendance = Attendance(60.0)
    assert attendance.gather(Comings({0, 1}, {0, 1}, {0, 1, 2}), NODES, 1.0) == ONLINE
    monkeypatch.setattr(module, "RETURN_SECONDS", 0.0)
    assert attendance.gather(Comings({0, 1}), NODES, 1.0) == {1000, 1001}
    assert attendance.away == {2}
    assert attendance.present(NODES, {1000, 1001}, 1) == {0: 1000, 1: 1001}
    monkeypatch.setattr(module, "RETURN_SECONDS", 60.0)
    assert attendance.gather(Comings({0, 1}), NODES, 1.0) == {1000, 1001}  # at once
    assert attendance.gather(Comings({0}, {0}, {0, 1}), NODES, 1.0) == {1000, 1001}  # the other one is waited for
    assert attendance.gather(Comings({0, 1, 2}), NODES, 1.0) == ONLINE and attendance.away == set()


def test_one_without_whom_there_is_a_quorum_is_not_waited_for() -> None:
    attendance = Attendance(60.0)
    assert attendance.gather(Comings({0, 1}), NODES, 0.6) == {1000, 1001}
    assert attendance.failed == {}


def test_one_that_is_away_does_not_fail_and_is_asked_as_soon_as_it_is_back(run, network, clients, monkeypatch):
    monkeypatch.setattr(module, "RETURN_SECONDS", 0.01)

    def go_and_come(reply: Any) -> Any:
        network.offline = {1} if clients.calls[-1][1] in (2, 3, 4, 5) else set()
        return reply

    clients.misbehaviour[2, "train"] = go_and_come
    figures = run(7)
    assert [row["num_clients_trained"] for row in figures] == [3, 3, 2, 2, 2, 2, 3]
    assert [row["away"] for row in figures] == [[], [1], [1], [1], [1], [], []]
    assert all(row["failed"] == {"train": {}, "evaluate": {}} and not row["resting"] for row in figures)


def test_one_that_goes_away_in_the_last_evaluation_is_asked_again(run, network, clients, monkeypatch):
    monkeypatch.setattr(module, "RETURN_SECONDS", 0.01)

    def go_once(reply: Any) -> Any:
        if clients.calls.count(("evaluate", 2, 0)) == 1:
            raise ConnectionError("the node's host died while it answered evaluate")
        return reply

    clients.misbehaviour[0, "evaluate"] = go_once
    figures = run(2, attempts=3)
    assert [row["num_clients_evaluated"] for row in figures] == [3, 3]
    assert figures[-1]["failed"]["evaluate"] == {}


def test_one_that_is_away_at_the_end_is_not_asked_and_not_waited_for_again(run, network, clients, monkeypatch):
    monkeypatch.setattr(module, "RETURN_SECONDS", 0.01)
    monkeypatch.setattr(attempts, "wait_for_return", lambda *_: pytest.fail("it waits"))

    def go(reply: Any) -> Any:
        network.offline = {1}
        return reply

    clients.misbehaviour[2, "evaluate"] = go
    figures = run(2, attempts=3)
    assert [row["num_clients_evaluated"] for row in figures] == [3, 2]
    assert figures[-1]["away"] == [1] and figures[-1]["failed"]["evaluate"] == {}


def test_who_failed_is_known_after_a_resumption(tmp_path):
    write_checkpoint(tmp_path, Checkpoint(3, {}, {}, {}, failed={2: 5}, back={2: 21}))
    found = read_checkpoint(tmp_path)
    assert (found.failed, found.back) == ({2: 5}, {2: 21})
