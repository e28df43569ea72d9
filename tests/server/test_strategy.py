"""Rounds: known updates give the known mixture, every client is accounted for, and no client can end the run."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import card, read_mixture
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.message_bytes import message_bytes
from server import exchange as exchange_module
from server.run_directory import ROUNDS, RunDirectory
from server.strategy import MixtureStrategy
from simulations.inline import InlineGrid

RunConfig = Callable[..., dict[str, Any]]


def strategy(spec: MixtureSpec, num_clients: int = 3, **changes: Any) -> MixtureStrategy:
    plain = MixtureStrategy(
        spec=spec,
        card=card(spec, "tiny", "same", 0),
        nodes={client: 1000 + client for client in range(num_clients)},
        client_fraction=1.0,
        seed=0,
        timeout_seconds=60.0,
    )
    return replace(plain, **changes)


def sampled(chosen: MixtureStrategy, server_round: int) -> dict[int, int]:
    return chosen.sample(server_round, chosen.nodes)


@pytest.fixture
def first(spec: MixtureSpec) -> Arrays:
    return initial_arrays(spec, np.random.default_rng(0))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def added_to_experts(arrays: Arrays, first: Arrays) -> list[float]:
    added = arrays["pool.keys.1"] - first["pool.keys.1"]
    return [float(expert.mean()) for expert in added]


def test_known_updates_give_the_known_mixture(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    grid = InlineGrid(clients.app, {}, 3)
    arrays = strategy(spec).run(grid, first, 2, directory).mixtures.shared
    # Twice the mean of 1, 2 and 3, weighted by USAGE's columns; each value is rounded to float32 four times.
    assert added_to_experts(arrays, first) == pytest.approx([2 * 15 / 11, 2 * 21 / 9, 2 * 3], abs=1e-5)
    np.testing.assert_allclose(arrays["gate.hidden.weight"], first["gate.hidden.weight"] + 4, atol=1e-5)
    for name, array in read_mixture(directory.path).arrays.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_the_last_scores_are_returned(clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory) -> None:
    last = strategy(spec).run(InlineGrid(clients.app, {}, 3), first, 1, directory).last
    assert {client: reply.scores for client, reply in last.items()} == {
        client: {f"task {client}": AnswerScore(10.0 * (client + 1), 10, 20, 2)} for client in range(3)
    }
    for client, reply in last.items():
        (use,) = reply.expert_use.values()
        np.testing.assert_array_equal(use, clients.evaluation(client).expert_use[f"task {client}"])


def test_the_order_of_replies_changes_nothing(
    clients: Any, network: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    first = {name: array + np.float32(1 / 3) for name, array in first.items()}
    in_order = strategy(spec).run(InlineGrid(clients.app, {}, 3), first, 2, directory).mixtures.shared
    last_first = strategy(spec).run(network, first, 2, directory).mixtures.shared
    for name in first:
        np.testing.assert_array_equal(in_order[name], last_first[name], err_msg=name)


def test_a_silent_client_is_a_failure_of_the_round_and_the_run_goes_on(
    network: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.001)
    network.silent = {2}
    outcome = strategy(spec, timeout_seconds=0.05).run(network, first, 1, directory)
    assert added_to_experts(outcome.mixtures.shared, first) == pytest.approx([12 / 10, 2, 0], abs=1e-5)
    assert list(outcome.last) == [0, 1]
    (figures,) = lines(directory.path / ROUNDS)
    silent = {"2": "no reply within 0.05 s"}
    assert figures["failed"] == {"train": silent, "evaluate": silent}
    assert (figures["num_clients_trained"], figures["num_clients_evaluated"]) == (2, 2)


def test_sampling_depends_on_seed_and_round_alone(spec: MixtureSpec) -> None:
    samples = [[*sampled(strategy(spec, 10, client_fraction=0.5), server_round)] for server_round in range(1, 9)]
    assert samples == [[*sampled(strategy(spec, 10, client_fraction=0.5), number)] for number in range(1, 9)]
    assert all(len(sample) == 5 and sample == sorted(sample) for sample in samples)
    assert len({tuple(sample) for sample in samples}) > 1
    assert {client for sample in samples for client in sample} == set(range(10))
    assert samples != [[*sampled(strategy(spec, 10, client_fraction=0.5, seed=1), number)] for number in range(1, 9)]


def test_a_sample_maps_clients_to_their_nodes_whatever_their_order(spec: MixtureSpec) -> None:
    backwards = {client: 1000 + client for client in reversed(range(10))}
    sample = sampled(strategy(spec, nodes=backwards, client_fraction=0.5), 1)
    assert sample == {client: 1000 + client for client in sample}
    assert sample == sampled(strategy(spec, 10, client_fraction=0.5), 1)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.34, 1), (0.5, 2), (1.0, 3)])
def test_a_sample_is_never_empty(spec: MixtureSpec, fraction: float, count: int) -> None:
    assert len(sampled(strategy(spec, 3, client_fraction=fraction), 1)) == count


def test_sampled_clients_train_and_all_evaluate(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    half = strategy(spec, client_fraction=0.5)
    half.run(InlineGrid(clients.app, {}, 3), first, 3, directory)
    for server_round in (1, 2, 3):
        calls = [(phase, client) for phase, number, client in clients.calls if number == server_round]
        trained = [("train", client) for client in sampled(half, server_round)]
        assert calls == trained + [("evaluate", client) for client in range(3)]


# --- The bytes of a round ---


def array_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Derive what Flower ships of a float32 array: its values, NumPy's header, and two headers of Flower's."""
    file = 128 + 4 * math.prod(shape)
    chunk = len(f"ArrayChunk  {file}\0") + file
    described = json.dumps({"dtype": "float32", "shape": shape, "stype": "numpy.ndarray", "arraychunk_ids": [0]})
    return chunk + len(f"Array {'#' * 64} {len(described)}\0{described}")


def container_bytes(kind: str, names: list[str]) -> int:
    """Derive the header of a record that holds others: their ids, and names with ids."""
    children = ",".join(["#" * 64] * len(names))
    described = json.dumps(dict.fromkeys(names, "#" * 64))
    return len(f"{kind} {children} {len(described)}\0{described}")


def arrays_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return container_bytes("ArrayRecord", [*shapes]) + sum(array_bytes(*item) for item in shapes.items())


def test_the_bytes_of_a_round_are_those_of_the_shapes(
    clients: Any, spec: MixtureSpec, first: Arrays, directory: RunDirectory
) -> None:
    # Flower ships equal arrays once, so no two may be equal here.
    first = {name: array + np.float32(index) for index, (name, array) in enumerate(first.items())}
    strategy(spec, client_fraction=0.5).run(InlineGrid(clients.app, {}, 3), first, 1, directory)

    down = container_bytes("RecordDict", ["config", "arrays"]) + arrays_bytes(spec.all())
    down += len(ConfigRecord({"server-round": 1, "tasks": []}).deflate())
    figures_up: dict[str, Any] = {"loss": 0.1, "num-examples": 8, "usage": [0.1, 0.2, 0.3], "gate-entropy": 0.1}
    metrics = MetricRecord(figures_up | {"task-examples": []})
    up = container_bytes("RecordDict", ["arrays", "metrics"]) + arrays_bytes(spec.trainable())
    up += len(metrics.deflate())
    scores = RecordDict({"tasks": ConfigRecord({"names": ["task 0"]})})
    scores["scores"] = MetricRecord({"nll": [0.1], "num-tokens": [10], "num-characters": [20], "num-examples": [2]})
    use = np.array([[0.1, 0.2, 0.7]])
    scores["gate"] = ArrayRecord({"expert-use": Array(use)})
    up_evaluated = container_bytes("RecordDict", ["tasks", "scores", "gate"])
    up_evaluated += sum(message_bytes(record) for record in scores.values())

    (figures,) = lines(directory.path / ROUNDS)
    assert figures["bytes_down"] == (2 + 3) * down  # two train, three evaluate
    assert figures["bytes_up"] == 2 * up + 3 * up_evaluated
    num_parameters = sum(math.prod(size) for size in spec.trainable().values())
    assert up - 4 * num_parameters < 500 * (len(spec.trainable()) + 2)  # headers: less than 500 bytes each
