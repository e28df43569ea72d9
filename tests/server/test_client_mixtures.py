"""One mixture for all, or one for each client: who is sent what, what is kept, and where it is saved."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import WEIGHTS, card, read_mixture
from common.mixture_spec import MixtureSpec
from common.wire.message_bytes import message_bytes
from common.wire.rounds import TrainReply, instruction, read_instruction
from server.app import app as server_app
from server.client_mixtures import ClientMixtures
from server.run_directory import RESULT, ROUNDS, RunDirectory
from server.strategy import MixtureStrategy
from simulations.inline import InlineGrid, run_inline

RunConfig = Callable[..., dict[str, Any]]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def first(spec: MixtureSpec) -> Arrays:
    return initial_arrays(spec, np.random.default_rng(0))


def update(value: float, num_examples: int = 1) -> TrainReply:
    arrays = {"pool.keys.1": np.full((2, 1), value, np.float32)}
    return TrainReply(arrays, 1.0, num_examples, np.array([num_examples, 0.0]), 0.0)


START = {"pool.keys.1": np.zeros((2, 1), np.float32), "gate.mean": np.ones(1, np.float32)}


# --- Merging ---


def test_plain_is_fedavg_and_usage_is_not() -> None:
    updates = {0: update(1.0, 3), 1: update(5.0, 1)}
    mixtures = {kind: ClientMixtures(START, kind) for kind in ("plain", "usage")}  # type: ignore[arg-type]
    for each in mixtures.values():
        each.merge(updates)
        assert not each.own
    assert mixtures["plain"].shared["pool.keys.1"].tolist() == [[2.0], [2.0]]
    assert mixtures["usage"].shared["pool.keys.1"].tolist() == [[2.0], [0.0]]  # nobody used the second expert


def test_none_keeps_every_clients_own() -> None:
    mixtures = ClientMixtures(START, "none")
    mixtures.merge({0: update(1.0), 2: update(3.0)})
    mixtures.merge({0: update(5.0)})
    assert {client: arrays["pool.keys.1"].tolist() for client, arrays in mixtures.own.items()} == {
        0: [[5.0], [5.0]],
        2: [[3.0], [3.0]],
    }
    assert all((arrays["gate.mean"] == 1.0).all() for arrays in mixtures.own.values())  # what is not trained goes along
    assert mixtures.of(1) is mixtures.shared is START


@pytest.mark.parametrize("aggregation", ["usage", "none"])
def test_in_int8_an_update_is_a_change_of_what_was_sent(aggregation: Any) -> None:
    start = {"pool.keys.1": np.array([[1.0, 0.3], [2.0, 0.0]], np.float32)}
    mixtures = ClientMixtures(start, aggregation, "int8")
    for server_round in (1, 2):
        content = mixtures.instructions(server_round, (), [0])[0]
        assert content.array_records["arrays"]["pool.keys.1"].dtype == "int8"
        sent = read_instruction(content).arrays["pool.keys.1"]
        assert sent[0, 1] != mixtures.of(0)["pool.keys.1"][0, 1]  # it was rounded
        change = replace(update(0.0), arrays={"pool.keys.1": np.full((2, 2), 0.5, np.float32)})
        mixtures.merge({0: change})
        np.testing.assert_allclose(mixtures.of(0)["pool.keys.1"][0], sent[0] + 0.5, rtol=1e-6)
    kept = mixtures.of(0)["pool.keys.1"][1]  # of an expert that nobody used nothing is merged
    np.testing.assert_allclose(kept, [2.0, 0.0] if aggregation == "usage" else [3.0, 1.0], atol=0.02)


def test_clients_that_share_a_mixture_share_the_message() -> None:
    mixtures = ClientMixtures(START, "none")
    mixtures.merge({1: update(1.0)})
    sent = mixtures.instructions(3, ("a",), range(3))
    assert sent[0] is sent[2] is not sent[1]
    read = {client: read_instruction(content) for client, content in sent.items()}
    assert [read[client].arrays["pool.keys.1"][0, 0] for client in range(3)] == [0.0, 1.0, 0.0]
    assert all((each.server_round, each.tasks) == (3, ("a",)) for each in read.values())


# --- A run without aggregation ---


def strategy(spec: MixtureSpec, **changes: Any) -> MixtureStrategy:
    nodes = {client: 1000 + client for client in range(3)}
    plain = MixtureStrategy(spec, card(spec, "tiny", "same", 0), nodes, 1.0, 0, 60.0, aggregation="none")
    return replace(plain, **changes)


def added(arrays: Arrays, first: Arrays, spec: MixtureSpec) -> float:
    """Return the one value that was added to everything that is trained, and to nothing else."""
    (value,) = {round(float(each), 3) for name in spec.trainable() for each in (arrays[name] - first[name]).ravel()}
    assert all((arrays[name] == first[name]).all() for name in first if name not in spec.trainable())
    return value


def test_each_client_is_sent_back_its_own_values(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    outcome = strategy(spec).run(InlineGrid(clients.app, {}, 3), first, 3, directory)
    for server_round in (1, 2, 3):
        for client in range(3):
            sent = (clients.sent[phase, server_round, client] for phase in ("train", "evaluate"))
            found = [added(arrays, first, spec) for arrays in sent]
            assert found == [(server_round - 1) * (client + 1), server_round * (client + 1)]
    assert {client: added(own, first, spec) for client, own in outcome.mixtures.own.items()} == {0: 3, 1: 6, 2: 9}
    assert outcome.mixtures.shared is first
    assert not (directory.path / WEIGHTS).exists()
    for client in range(3):
        saved = read_mixture(directory.path / f"client-{client}")
        assert added(saved.arrays, first, spec) == 3 * (client + 1)
        described = json.loads((directory.path / f"client-{client}" / "adapter_config.json").read_text())
        assert described["server_round"] == 3


def test_a_client_that_was_not_sampled_or_failed_keeps_its_own(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    def fail_in_round_2(reply: TrainReply) -> TrainReply:
        if clients.calls[-1][1] == 2:
            raise OSError("the disk is full")
        return reply

    clients.misbehaviour[1, "train"] = fail_in_round_2
    two_of_three = strategy(spec, client_fraction=0.67)
    outcome = two_of_three.run(InlineGrid(clients.app, {}, 3), first, 5, directory)
    trained = [
        client
        for server_round in range(1, 6)
        for client in two_of_three.sample(server_round, two_of_three.nodes)
        if (client, server_round) != (1, 2)
    ]
    assert 1 in two_of_three.sample(2, two_of_three.nodes)
    counts = {client: trained.count(client) for client in range(3)}
    assert set(counts.values()) != {5}
    for client in range(3):
        assert added(outcome.mixtures.of(client), first, spec) == counts[client] * (client + 1)
        assert added(clients.sent["evaluate", 5, client], first, spec) == counts[client] * (client + 1)


def test_a_client_that_never_trained_is_scored_with_the_first_mixture_and_has_no_directory(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    clients.misbehaviour[2, "train"] = lambda _: 1 / 0
    strategy(spec).run(InlineGrid(clients.app, {}, 3), first, 1, directory)
    assert added(clients.sent["evaluate", 1, 2], first, spec) == 0
    assert sorted(path.name for path in directory.path.glob("client-*")) == ["client-0", "client-1"]


def test_the_bytes_are_counted_by_client(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    # Flower ships equal arrays once: where a client's are, its message is smaller.
    first = {name: array + np.float32(index) for index, (name, array) in enumerate(first.items())}
    first["gate.scale"] = first["gate.mean"]

    def equal_gate(reply: TrainReply) -> TrainReply:
        gate = {name: np.zeros_like(reply.arrays[name]) for name in ("gate.output.bias", "gate.hidden.bias")}
        return replace(reply, arrays=reply.arrays | gate | {"pool.keys.2": reply.arrays["pool.values.2"]})

    clients.misbehaviour[1, "train"] = equal_gate
    strategy(spec).run(InlineGrid(clients.app, {}, 3), first, 2, directory)
    for figures in lines(directory.path / ROUNDS):
        sent = [arrays for (_, number, _), arrays in clients.sent.items() if number == figures["round"]]
        assert len(sent) == 6
        sizes = [message_bytes(instruction(figures["round"], arrays)) for arrays in sent]
        assert figures["bytes_down"] == sum(sizes)
    assert len(set(sizes)) == 2


# --- Personal steps ---


@pytest.mark.parametrize("aggregation", ["usage", "plain", "none"])
def test_personal_steps_go_on_from_what_each_client_had(
    clients: Any, run_config: RunConfig, spec: MixtureSpec, tmp_path: Path, aggregation: str
) -> None:
    run_inline(server_app, clients.app, run_config(num_personal_steps=5, aggregation=aggregation), 3)
    for client in range(3):
        before, sent = clients.sent["evaluate", 2, client], clients.sent["train", 3, client]
        assert all((before[name] == sent[name]).all() for name in before)
        after = clients.sent["evaluate", 3, client]
        assert added(after, before, spec) == client + 1
        saved = read_mixture(tmp_path / "run" / f"client-{client}").arrays
        assert all((saved[name] == after[name]).all() for name in after)
    assert (tmp_path / "run" / WEIGHTS).exists() == (aggregation != "none")
    if aggregation != "none":
        shared = read_mixture(tmp_path / "run").arrays
        assert all((shared[name] == clients.sent["evaluate", 2, 0][name]).all() for name in shared)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert [row["personalised_perplexity"] for row in result["clients"]] == pytest.approx([np.e, np.e**2, np.e**3])
    assert result["personalised_perplexity"] == pytest.approx(np.e**2)
    assert [line["round"] for line in lines(tmp_path / "run" / ROUNDS)] == [0, 1, 2]


def test_all_clients_train_on_whoever_was_sampled(clients: Any, run_config: RunConfig) -> None:
    run_inline(server_app, clients.app, run_config(num_personal_steps=5, client_fraction=0.34), 3)
    assert [client for phase, number, client in clients.calls if (phase, number) == ("train", 3)] == [0, 1, 2]


def test_a_client_that_fails_at_the_end_keeps_what_it_had(
    clients: Any, run_config: RunConfig, spec: MixtureSpec, tmp_path: Path
) -> None:
    clients.misbehaviour[1, "train"] = lambda reply: 1 / 0 if clients.calls[-1][1] == 3 else reply
    clients.misbehaviour[2, "evaluate"] = lambda reply: 1 / 0 if clients.calls[-1][1] == 3 else reply
    run_inline(server_app, clients.app, run_config(num_personal_steps=5), 3)
    before, after = (clients.sent["evaluate", number, 1] for number in (2, 3))
    assert added(after, before, spec) == 0
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert ["personalised_perplexity" in row for row in result["clients"]] == [True, True, False]
    assert result["personalised_perplexity"] == pytest.approx(np.e**1.5)  # of clients 0 and 1


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_where_all_fail_at_the_end_the_federated_result_is_not_lost(
    clients: Any, run_config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, phase: str
) -> None:
    run_inline(server_app, clients.app, run_config(), 3)
    federated = json.loads((tmp_path / "run" / RESULT).read_text())
    for client in range(3):
        clients.misbehaviour[client, phase] = lambda reply: 1 / 0 if clients.calls[-1][1] == 3 else reply
    run_inline(server_app, clients.app, run_config(num_personal_steps=5, run_directory=str(tmp_path / "other")), 3)
    assert json.loads((tmp_path / "other" / RESULT).read_text()) == federated
    assert "there is no personalised result: round 3: no client sent" in caplog.text
