"""First prompts that a client makes of its vocabulary: one is asked, and the next when it fails."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config import Config
from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec
from server.first_mixture import first_mixture
from server.preparation import Preparation, prepare_clients
from server.run_directory import RunDirectory
from simulations.inline import InlineGrid


@pytest.fixture
def prepared(clients: Any, directory: RunDirectory) -> Preparation:
    grid = InlineGrid(clients.app, {}, 3)
    return prepare_clients(grid, grid.get_node_ids(), 60.0, directory)


@pytest.fixture
def from_vocabulary(clients: Any, config: Config, spec: MixtureSpec, prepared: Preparation) -> Callable[[], Arrays]:
    config = replace(config, prompt_init="vocabulary", gate_pretraining="none")
    return lambda: first_mixture(InlineGrid(clients.app, {}, 3), config, spec, prepared)


def asked_for_prompts(clients: Any) -> list[int]:
    return [client for phase, _, client in clients.calls if phase == "vocabulary"]


def test_one_client_is_asked_for_first_prompts(
    clients: Any, from_vocabulary: Callable[[], Arrays], prepared: Preparation, spec: MixtureSpec
) -> None:
    before = prepared.bytes_up
    arrays = from_vocabulary()
    assert asked_for_prompts(clients) == [0]
    assert prepared.bytes_up > before
    assert arrays.keys() == spec.all().keys()
    assert all((arrays[name] == 7.0).all() for name in spec.pool())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda _: 1 / 0, "division by zero"),
        (lambda pool: {name: array[:1] for name, array in pool.items()}, "must be finite float32"),
        (lambda pool: {name: array * np.nan for name, array in pool.items()}, "must be finite float32"),
        (lambda pool: {name: array.astype(np.float64) for name, array in pool.items()}, "must be finite float32"),
        (lambda pool: {}, "pool.keys.1"),
    ],
)
def test_when_a_client_fails_the_next_is_asked(
    clients: Any, from_vocabulary: Callable[[], Arrays], prepared: Preparation, spoil: Callable[[Any], Any], reason: str
) -> None:
    clients.misbehaviour[0, "vocabulary"] = spoil
    arrays = from_vocabulary()
    assert asked_for_prompts(clients) == [0, 1]
    assert (arrays["pool.keys.1"] == 7.0).all()
    assert [*prepared.failed["vocabulary"]] == [0]
    assert reason in prepared.failed["vocabulary"][0]


def test_prompts_that_nobody_sends_are_an_error_with_a_reason(
    clients: Any, from_vocabulary: Callable[[], Arrays]
) -> None:
    for client in range(3):
        clients.misbehaviour[client, "vocabulary"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match="no client sent its vocabulary: division by zero"):
        from_vocabulary()
    assert asked_for_prompts(clients) == [0, 1, 2]
