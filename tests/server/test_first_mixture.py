"""The first mixture: drawn, standardised and fitted, and it depends on the seed alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import Config, read_config
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_spec import MixtureSpec
from server.expert_groups import dealt
from server.first_mixture import first_mixture
from server.gate_statistics import sum_statistics
from server.preparation import Preparation, prepare_clients
from server.run_directory import RunDirectory
from simulations.inline import InlineGrid


def spec_of(config: Config, prepared: Preparation) -> MixtureSpec:
    reply = prepared.replies[0]
    return config.mixture_spec(reply.hidden_size, reply.kv_shapes, prepared.tasks, reply.gate_input_size)


@pytest.fixture
def prepare(clients: Any, directory: RunDirectory) -> Callable[[], Preparation]:
    grid = InlineGrid(clients.app, {}, 3)
    return lambda: prepare_clients(grid, grid.get_node_ids(), 60.0, directory)


@pytest.fixture
def first(clients: Any, prepare: Callable[[], Preparation], spec: MixtureSpec) -> Callable[[Config], Arrays]:
    """Return a function that makes a configuration's first mixture."""
    prepared = prepare()
    grid = InlineGrid(clients.app, {}, 3)
    return lambda config: first_mixture(grid, config, spec, prepared)


def test_the_mixtures_spec_is_the_configurations_on_the_clients_backbone(
    config: Config, prepare: Callable[[], Preparation], spec: MixtureSpec
) -> None:
    assert spec_of(config, prepare()) == spec


def test_the_first_mixture_is_drawn_then_standardised_then_fitted(
    config: Config, first: Callable[[Config], Arrays], spec: MixtureSpec
) -> None:
    drawn = initial_arrays(spec, np.random.default_rng(config.seed))
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
    assert logits.argmax(axis=1).tolist() == dealt(statistics.tasks, 3)[own].tolist()


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
    arrays = first_mixture(InlineGrid(clients.app, {}, 3), config, spec_of(config, prepared), prepared)
    assert arrays
    assert all(name.startswith("pool.") for name in arrays)


@pytest.mark.parametrize("pretraining", ["task", "kmeans"])
def test_the_first_mixture_depends_on_the_seed_alone(
    run_config: Callable[..., dict[str, Any]], first: Callable[[Config], Arrays], spec: MixtureSpec, pretraining: str
) -> None:
    one, again, other = (first(read_config(run_config(seed=seed, gate_pretraining=pretraining))) for seed in (1, 1, 2))
    for name in spec.trainable():
        assert (one[name] == again[name]).all(), name
        assert (one[name] != other[name]).any(), name
