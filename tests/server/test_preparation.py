"""Before round 1: who takes part is settled by name, and the first mixture depends on the seed alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import Config, read_config
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_spec import MixtureSpec
from server.gate_fit import expert_of_task, sum_statistics
from server.preparation import Preparation, first_mixture, mixture_shape, prepare_clients
from server.run_directory import METRICS, RunDirectory
from simulations.inline import InlineGrid


@pytest.fixture
def prepare(clients: Any, directory: RunDirectory) -> Callable[[], Preparation]:
    grid = InlineGrid(clients.app, {}, 3)
    # In another order than the partitions', as in deployment.
    return lambda: prepare_clients(grid, grid.get_node_ids()[::-1], 60.0, directory)


def test_clients_are_known_by_their_partition_with_their_node(prepare: Callable[[], Preparation]) -> None:
    prepared = prepare()
    assert prepared.nodes == {0: 1000, 1: 1001, 2: 1002}
    assert [(client, reply.partition) for client, reply in prepared.replies.items()] == [(0, 0), (1, 1), (2, 2)]


def test_the_backbones_scores_are_kept(prepare: Callable[[], Preparation], directory: RunDirectory) -> None:
    prepare()
    lines = (directory.path / METRICS).read_text().splitlines()
    assert len(lines) == 6
    assert all('"round": 0, "phase": "backbone"' in line for line in lines)


def test_a_client_with_another_backbone_is_left_out_by_name(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, fingerprint="another")
    prepared = prepare()
    assert list(prepared.nodes) == list(prepared.replies) == [1, 2]
    assert "client 0 is left out: its backbone has the fingerprint another, most have same" in caplog.text
    assert "client 0 is left out" in prepared.failed["prepare"][1000]


def test_a_partition_that_another_node_holds_is_refused(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, partition=2)
    prepared = prepare()
    assert prepared.nodes == {1: 1001, 2: 1002}
    assert "partition 2 is another node's: give each node its own partition-id" in caplog.text


def test_a_client_that_raises_is_left_out(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda _: 1 / 0
    assert list(prepare().nodes) == [1, 2]
    assert "failed to query.prepare: <class 'ZeroDivisionError'>:<'division by zero'>" in caplog.text


def test_a_failure_is_never_blamed_on_a_client_that_answered(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda _: 1 / 0
    prepare()
    assert "client 2 failed" not in caplog.text
    assert "node 1000 failed to query.prepare" in caplog.text


def test_nobody_left_is_an_error_with_a_reason(prepare: Callable[[], Preparation], clients: Any) -> None:
    for client in range(3):
        clients.misbehaviour[client, "prepare"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match=r"no client could prepare: .*division by zero"):
        prepare()


# --- The first mixture ---


@pytest.fixture
def first(clients: Any, prepare: Callable[[], Preparation], shape: MixtureSpec) -> Callable[[Config], Arrays]:
    """Return a function that makes a configuration's first mixture."""
    prepared = prepare()
    grid = InlineGrid(clients.app, {}, 3)
    return lambda config: first_mixture(grid, config, shape, prepared)


def test_the_mixtures_shape_is_the_configurations_on_the_clients_backbone(
    config: Config, prepare: Callable[[], Preparation], shape: MixtureSpec
) -> None:
    assert mixture_shape(config, prepare().replies[0]) == shape


def test_the_first_mixture_is_drawn_then_standardised_then_fitted(
    config: Config, first: Callable[[Config], Arrays], shape: MixtureSpec
) -> None:
    drawn = initial_arrays(shape, np.random.default_rng(config.seed))
    plain, fitted = first(replace(config, gate_pretraining="none")), first(config)
    for name in drawn:
        if name in ("gate.mean", "gate.scale"):
            assert (plain[name] != drawn[name]).all(), name
            assert (fitted[name] == plain[name]).all(), name
        else:
            assert (plain[name] == drawn[name]).all(), name
            assert (fitted[name] == drawn[name]).all() == name.startswith("pool."), name


def test_the_fitted_gate_sends_a_tasks_mean_input_to_the_tasks_expert(
    config: Config, first: Callable[[Config], Arrays], prepare: Callable[[], Preparation]
) -> None:
    arrays = first(config)
    statistics = sum_statistics([*prepare().replies.values()])
    own = [index for index, task in enumerate(statistics.tasks) if task != "shared"]
    inputs = (statistics.sums[own] / statistics.counts[own, None] - arrays["gate.mean"]) / arrays["gate.scale"]
    hidden = np.tanh(inputs @ arrays["gate.hidden.weight"].T + arrays["gate.hidden.bias"])
    logits = hidden @ arrays["gate.output.weight"].T + arrays["gate.output.bias"]
    assert logits.argmax(axis=1).tolist() == expert_of_task(len(statistics.tasks), 3)[own].tolist()


def test_moments_are_asked_for_with_the_statistics_alone(
    clients: Any, config: Config, first: Callable[[Config], Arrays]
) -> None:
    asked: list[list[str]] = []
    answer = clients.app._registered_funcs["query.moments"]
    clients.app._registered_funcs["query.moments"] = lambda message, context: (
        asked.append([*message.content.array_records["arrays"]]),
        answer(message, context),
    )[1]
    first(config)
    assert asked == [["gate.mean", "gate.scale"]] * 3


def test_a_gate_that_is_not_pretrained_asks_for_no_moments(
    clients: Any, config: Config, first: Callable[[Config], Arrays]
) -> None:
    first(replace(config, gate_pretraining="none"))
    assert {phase for phase, _, _ in clients.calls} == {"prepare"}


def test_a_client_without_moments_counts_in_neither_sum(
    clients: Any, config: Config, first: Callable[[Config], Arrays], caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[1, "moments"] = lambda _: 1 / 0
    arrays = first(config)
    assert "client 1 failed to query.moments: " in caplog.text
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_no_moments_at_all_are_an_error_with_a_reason(
    clients: Any, config: Config, first: Callable[[Config], Arrays]
) -> None:
    for client in range(3):
        clients.misbehaviour[client, "moments"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match=r"no client sent its moments: .*division by zero"):
        first(config)


def test_one_expert_has_no_gate(clients: Any, config: Config, prepare: Callable[[], Preparation]) -> None:
    config, prepared = replace(config, num_experts=1), prepare()
    arrays = first_mixture(InlineGrid(clients.app, {}, 3), config, mixture_shape(config, prepared.replies[0]), prepared)
    assert arrays
    assert all(name.startswith("pool.") for name in arrays)


def test_the_first_mixture_depends_on_the_seed_alone(
    run_config: Callable[..., dict[str, Any]], first: Callable[[Config], Arrays], shape: MixtureSpec
) -> None:
    one, again, other = (first(read_config(run_config(seed=seed))) for seed in (1, 1, 2))
    for name in shape.trainable():
        assert (one[name] == again[name]).all(), name
        assert (one[name] != other[name]).any(), name
