"""Who comes late, went away or was refused takes part as soon as it can, and is told apart from who may not."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, read_config
from common.mixture_arrays import initial_arrays
from common.mixture_file import card
from common.mixture_spec import MixtureSpec
from common.wire.preparation import VOCABULARY
from common.wire.rounds import instruction
from server import attempts
from server import exchange as exchange_module
from server import newcomers as module
from server.app import starting_point
from server.ask import ask, ask_one
from server.checkpoint import Checkpoint
from server.newcomers import Newcomers
from server.preparation import Preparation, prepare_clients
from server.run_directory import METRICS, ROUNDS, RunDirectory
from server.strategy import MixtureStrategy

OTHER = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(attempts, "RETURN_SECONDS", 0.01)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepared(network: Any, directory: RunDirectory, **more: Any) -> Preparation:
    return prepare_clients(network, network.get_node_ids(), 60.0, directory, **more)


@pytest.fixture
def run(network: Any, clients: Any, spec: MixtureSpec, directory: RunDirectory) -> Callable[..., list[dict[str, Any]]]:
    """Run rounds of those who were prepared; `before` is called before each round. Return the rounds' figures."""

    def run(
        preparation: Preparation, num_rounds: int, before: Callable[[int], None] = lambda _: None
    ) -> list[dict[str, Any]]:
        class Told(Newcomers):
            def look(self, grid: Any, server_round: int) -> list[int]:
                before(server_round)
                return super().look(grid, server_round)

        strategy = MixtureStrategy(
            spec,
            card(spec, "tiny", "same", 0),
            preparation.nodes,
            client_fraction=1.0,
            seed=0,
            timeout_seconds=60.0,
            newcomers=Told(preparation, directory, 60.0),
        )
        strategy.run(network, initial_arrays(spec, np.random.default_rng(0)), num_rounds, directory)
        return lines(directory.path / ROUNDS)

    return run


def test_a_node_that_comes_late_takes_part_from_the_next_round_on(
    network: Any, run: Any, directory: RunDirectory
) -> None:
    network.offline = {1}
    preparation = prepared(network, directory)
    assert list(preparation.nodes) == [0, 2]

    def before(server_round: int) -> None:
        if server_round == 2:
            network.offline = set()

    figures = run(preparation, 4, before)
    assert [row["joined"] for row in figures] == [[], [], [1], []]  # asked in round 2, it has told by round 3
    assert [row["num_clients_trained"] for row in figures] == [2, 2, 3, 3]
    assert preparation.nodes == {0: 1000, 1: 1001, 2: 1002} and set(preparation.replies) == {0, 1, 2}
    alone = [row for row in lines(directory.path / METRICS) if row["phase"] == "backbone" and row["client"] == 1]
    assert [(row["round"], row["task"]) for row in alone] == [(3, "task 1"), (3, "shared")]


def test_where_all_take_part_nobody_is_asked_again(network: Any, run: Any, clients: Any, directory: Any) -> None:
    figures = run(prepared(network, directory), 3)
    assert [call[0] for call in clients.calls].count("prepare") == 3
    assert [row["joined"] for row in figures] == [[], [], []]


def test_one_that_was_refused_is_asked_ever_less_often_until_it_fits(
    network: Any, run: Any, clients: Any, directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, weights_hash=OTHER)
    preparation = prepared(network, directory)

    def before(server_round: int) -> None:
        if server_round == 12:
            del clients.misbehaviour[0, "prepare"]

    figures = run(preparation, 24, before)
    # It rests for 2, 4 and 8 rounds: asked in rounds 2, 7 and 16, it has told by the next.
    assert [row["round"] for row in figures if row["joined"]] == [17]
    assert caplog.text.count("client 0 is left out: its weights differ from most clients'") == 3
    assert figures[-1]["num_clients_trained"] == 3


@pytest.mark.parametrize(
    ("misbehaviour", "said"),
    [
        (lambda reply: 1 / 0, "node 1000 cannot take part: division by zero"),
        (lambda reply: replace(reply, fingerprint="?"), "node 1000 cannot take part: fingerprint is '?', expected"),
        (lambda reply: replace(reply, partition=2), "node 1000 cannot take part: partition 2 is another node's"),
    ],
)
def test_what_is_wrong_with_one_that_comes_late_is_said_and_ends_no_run(
    network: Any,
    run: Any,
    clients: Any,
    directory: RunDirectory,
    caplog: pytest.LogCaptureFixture,
    misbehaviour: Any,
    said: str,
) -> None:
    network.offline = {0}
    preparation = prepared(network, directory)
    network.offline = set()
    clients.misbehaviour[0, "prepare"] = misbehaviour
    figures = run(preparation, 3)
    assert said in caplog.text
    assert [row["num_clients_trained"] for row in figures] == [2, 2, 2]


def test_a_client_that_comes_with_another_key_takes_its_own_place(
    network: Any, clients: Any, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    network.offline = {2}
    preparation = prepared(network, directory)
    clients.misbehaviour[2, "prepare"] = lambda reply: replace(reply, partition=1)
    newcomers = Newcomers(preparation, directory, 3600.0)
    network.offline = {1}  # for a moment only, as far as is known
    assert newcomers.look(network, 1) == newcomers.look(network, 2) == []
    assert "partition 1 is another node's" in caplog.text
    now[0] += module.GONE_SECONDS + 1
    assert newcomers.look(network, 4) == []
    assert newcomers.look(network, 5) == [1]
    assert preparation.nodes == {0: 1000, 1: 1002}
    assert "client 1 takes part from round 5 on, in the place of node 1001" in caplog.text


def test_one_that_goes_away_while_it_tells_is_asked_again(
    network: Any, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.offline = {2}
    newcomers = Newcomers(prepared(network, directory), directory, 60.0)
    network.offline, network.silent = set(), {2}
    assert newcomers.look(network, 1) == [] and newcomers.bytes_down > 0 == newcomers.bytes_up
    network.started[2] = datetime.now(UTC) + timedelta(seconds=1)  # back, without the message
    assert newcomers.look(network, 2) == [] and newcomers.bytes_down > 0
    network.started, network.silent = {}, set()
    assert newcomers.look(network, 3) == [2] and newcomers.bytes_up > newcomers.bytes_down == 0


def test_one_that_does_not_tell_in_time_is_asked_again(
    network: Any, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.offline = {2}
    newcomers = Newcomers(prepared(network, directory), directory, 60.0)
    network.offline, network.silent = set(), {2}
    begun = time.time()
    asked = []
    for seconds in (0, 50, 61):
        monkeypatch.setattr(module.time, "time", lambda seconds=seconds: begun + seconds)
        assert newcomers.look(network, 1) == []
        asked.append(newcomers.bytes_down > 0)
    assert asked == [True, False, True]


# --- The first exchange ---


def test_a_node_that_goes_away_in_the_first_exchange_is_asked_again(
    network: Any, clients: Any, directory: RunDirectory
) -> None:
    def go_once(reply: Any) -> Any:
        if clients.calls.count(("prepare", 0, 0)) == 1:
            raise ConnectionError("the node's host died while it answered query.prepare")
        return reply

    clients.misbehaviour[0, "prepare"] = go_once
    preparation = prepared(network, directory, attempts=3)
    assert list(preparation.nodes) == [0, 1, 2] and preparation.failed == {"prepare": {}}
    assert [call[2] for call in clients.calls] == [0, 1, 2, 0]


def test_one_that_only_fails_is_not_asked_again(network: Any, clients: Any, directory: RunDirectory) -> None:
    clients.misbehaviour[0, "prepare"] = lambda _: 1 / 0
    assert list(prepared(network, directory, attempts=3).nodes) == [1, 2]
    assert len(clients.calls) == 3


def test_a_quorum_is_enough_for_the_first_exchange_and_the_others_come_later(
    network: Any, clients: Any, run: Any, directory: RunDirectory
) -> None:
    network.silent = {1}
    preparation = prepared(network, directory, quorum=0.6)
    assert list(preparation.nodes) == [0, 2] and list(preparation.unanswered.values()) == [1001]
    network.silent = set()
    figures = run(preparation, 2)
    assert [row["joined"] for row in figures] == [[1], []]
    assert [call for call in clients.calls if call[0] == "prepare" and call[2] == 1] == [("prepare", 0, 1)]  # once


def test_the_gates_exchanges_are_made_again_with_those_who_went_away(
    network: Any, clients: Any, config: Config, directory: RunDirectory
) -> None:
    preparation = prepared(network, directory)
    seen: list[int] = []

    def go_once(reply: Any) -> Any:
        seen.append(1)
        if len(seen) == 1:
            raise ConnectionError("the node's host died while it answered query.vocabulary")
        return reply

    clients.misbehaviour[1, "vocabulary"] = go_once
    exchanged = ask(network, config, preparation, VOCABULARY, instruction(0), preparation.nodes, len)
    assert list(exchanged.replies) == [0, 1, 2] and exchanged.failures == {} and len(seen) == 2


def test_who_does_not_come_back_is_waited_for_once_and_not_asked_in_the_next_exchange(
    network: Any, clients: Any, config: Config, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(attempts, "poll", lambda condition, seconds: waits.append(seconds) or condition())
    preparation = prepared(network, directory)
    network.offline = {1}
    for _ in range(2):
        exchanged = ask(network, config, preparation, VOCABULARY, instruction(0), preparation.nodes, len)
        assert list(exchanged.replies) == [0, 2]
    assert waits == [attempts.LONGEST_RETURN_SECONDS] and preparation.gone == {1}


def test_one_of_all_is_asked_without_waiting_for_those_who_are_away(
    network: Any, clients: Any, config: Config, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "poll", lambda *_: pytest.fail("it waits"))
    preparation = prepared(network, directory)
    network.offline = {0, 1}
    assert ask_one(network, config, preparation, VOCABULARY, instruction(0), len) > 0
    assert [call[2] for call in clients.calls if call[0] == "vocabulary"] == [2]


def test_where_all_are_away_they_are_waited_for(
    network: Any, config: Config, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_back(condition: Callable[[], bool], seconds: float) -> bool:
        network.offline = set()
        return condition()

    monkeypatch.setattr(attempts, "poll", come_back)
    preparation = prepared(network, directory)
    network.offline = {0, 1, 2}
    assert ask_one(network, config, preparation, VOCABULARY, instruction(0), len) > 0


def test_a_resumed_run_keeps_the_tasks_that_its_mixture_was_made_for(
    network: Any, run_config: Callable[..., dict[str, Any]], directory: RunDirectory
) -> None:
    config = read_config(run_config(gate="task"))
    preparation = prepared(network, directory)
    spec, arrays, _ = starting_point(network, config, preparation)
    assert spec.tasks == ("shared", "task 0", "task 1", "task 2")
    checkpoint = Checkpoint(3, arrays | {"gate.mean": arrays["gate.expert_keys"]}, {}, {}, tasks=("shared", "task 1"))
    preparation.known_tasks = frozenset(checkpoint.tasks)
    resumed, found, _ = starting_point(network, config, preparation, checkpoint)
    assert resumed.tasks == checkpoint.tasks and found is checkpoint.shared
