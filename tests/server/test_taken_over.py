"""Prompts to start from: those of an earlier run, if they fit, and those that a client makes of its vocabulary."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import CARD, WEIGHTS, card, weights_bytes
from common.mixture_spec import GATE_STATISTICS, MixtureSpec
from server.first_mixture import first_mixture, taken_over
from server.preparation import prepare_clients
from server.run_directory import RunDirectory
from simulations.inline import InlineGrid

SAME = "5a" * 16  # the fingerprint of the fixture `clients`
Saved = Callable[[MixtureSpec], Arrays]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "earlier"
    path.mkdir()
    return path


@pytest.fixture
def save(earlier: Path) -> Saved:
    """Return a function that saves a drawn mixture as an earlier run."""

    def write(spec: MixtureSpec) -> Arrays:
        arrays = {name: array + np.float32(0.25) for name, array in drawn(spec).items()}
        (earlier / WEIGHTS).write_bytes(weights_bytes(arrays))
        (earlier / CARD).write_text(json.dumps(card(spec, "tiny", SAME, 3)))
        return arrays

    return write


def drawn(spec: MixtureSpec) -> Arrays:
    return initial_arrays(spec, np.random.default_rng(77))


@pytest.fixture
def going_on(config: Config, earlier: Path) -> Config:
    return replace(config, prompt_init=str(earlier), gate_pretraining="none")


@pytest.fixture
def first(clients: Any, directory: RunDirectory) -> Callable[[Config, MixtureSpec], Arrays]:
    grid = InlineGrid(clients.app, {}, 3)
    prepared = prepare_clients(grid, grid.get_node_ids(), 60.0, directory)
    return lambda config, spec: first_mixture(grid, config, spec, prepared)


def test_a_run_that_goes_on_starts_with_the_saved_values(
    save: Saved, going_on: Config, spec: MixtureSpec, first: Callable[[Config, MixtureSpec], Arrays]
) -> None:
    saved, arrays = save(spec), first(going_on, spec)
    assert arrays.keys() == saved.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name, strict=True)


def test_a_gate_that_is_pretrained_anew_is_not_taken_over(
    save: Saved, going_on: Config, spec: MixtureSpec, first: Callable[[Config, MixtureSpec], Arrays]
) -> None:
    saved, arrays = save(spec), first(replace(going_on, gate_pretraining="task"), spec)
    for name, array in saved.items():
        assert (arrays[name] == array).all() == name.startswith("pool."), name
    assert taken_over(replace(going_on, gate_pretraining="task"), spec, SAME).keys() == spec.pool().keys()


def test_one_expert_starts_all(save: Saved, going_on: Config, spec: MixtureSpec) -> None:
    saved, arrays = save(replace(spec, num_experts=1)), taken_over(going_on, spec, SAME)
    assert arrays.keys() == spec.pool().keys()
    for name, shape in spec.pool().items():
        assert arrays[name].shape == shape
        for expert in arrays[name]:
            np.testing.assert_array_equal(expert, saved[name][0], err_msg=name)


def test_hidden_prompts_are_taken_over(save: Saved, going_on: Config, spec: MixtureSpec) -> None:
    spec = replace(spec, form="hidden")
    saved = save(spec)
    np.testing.assert_array_equal(taken_over(going_on, spec, SAME)["pool.hidden"], saved["pool.hidden"])


@pytest.mark.parametrize(
    "changes",
    [{"num_experts": 2}, {"tokens_per_expert": 3}, {"form": "hidden"}, {"kv_shapes": {2: (1, 4, 4)}}],
)
def test_prompts_of_other_shapes_are_refused_in_one_line(
    save: Saved, going_on: Config, spec: MixtureSpec, earlier: Path, changes: dict[str, Any]
) -> None:
    save(replace(spec, **changes))
    with pytest.raises(ValueError) as error:
        taken_over(going_on, spec, SAME)
    assert str(error.value) == (
        f"the prompts of {earlier} have other shapes than this run's: give the same prompt-form, tokens-per-expert and "
        "injection-layer, and as many experts or one"
    )


def test_prompts_of_another_backbone_are_refused(save: Saved, going_on: Config, spec: MixtureSpec) -> None:
    save(spec)
    with pytest.raises(ValueError, match=rf"fingerprint {SAME}, but the run's backbone 'skills' has other: choose the"):
        taken_over(going_on, spec, "other")


def test_a_damaged_run_is_refused(save: Saved, going_on: Config, spec: MixtureSpec, earlier: Path) -> None:
    save(spec)
    (earlier / WEIGHTS).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"is no saved mixture, or damaged .*: choose another run"):
        taken_over(going_on, spec, SAME)


# --- The gate of an earlier run ---

TASKS = ("a", "b", "c")


def test_a_task_keeps_its_embedding_by_its_name(save: Saved, going_on: Config, spec: MixtureSpec) -> None:
    old = replace(spec, gate="both", tasks=TASKS)
    saved = save(old)
    arrays = taken_over(going_on, replace(old, tasks=("b", "c", "y", "z")), SAME)
    embeddings, before = arrays["gate.task_embeddings"], saved["gate.task_embeddings"]
    np.testing.assert_array_equal(embeddings[:2], before[1:])
    for row in (2, 3):  # unknown to the earlier run
        np.testing.assert_allclose(embeddings[row], before.mean(axis=0), rtol=1e-6)
    others = {name for name in saved if name.startswith("gate.")} - {"gate.task_embeddings"}
    assert others >= {*GATE_STATISTICS, "gate.expert_keys", "gate.query.weight", "gate.output.weight"}
    for name in others:
        np.testing.assert_array_equal(arrays[name], saved[name], err_msg=name)


@pytest.mark.parametrize("changes", [{"gate": "both", "tasks": TASKS}, {"gate_hidden_size": 9}])
def test_a_gate_of_another_kind_or_size_is_left_and_the_log_says_so(
    save: Saved, going_on: Config, spec: MixtureSpec, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    save(spec)
    arrays = taken_over(going_on, replace(spec, **changes), SAME)
    assert arrays.keys() == spec.pool().keys()
    assert "the gate of prompt-init is of another kind or size and is not taken over" in caplog.text
