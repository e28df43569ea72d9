"""An update is merged only when names, shapes, dtypes and values are what training gives."""

from dataclasses import replace

import numpy as np
import pytest

from common.measures import MeasureSum
from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.rounds import EvaluateReply, TrainReply
from server.update_check import check_evaluate_reply, check_measured, check_update


@pytest.fixture
def update(spec: MixtureSpec) -> TrainReply:
    arrays = initial_arrays(spec, np.random.default_rng(0))
    return TrainReply({name: arrays[name] for name in spec.trainable()}, 1.5, 8, np.array([5.0, 3.0, 0.0]), 0.5)


def test_a_right_update_passes(update: TrainReply, spec: MixtureSpec) -> None:
    check_update(update, spec)


def test_rounding_of_the_usage_passes(update: TrainReply, spec: MixtureSpec) -> None:
    check_update(replace(update, usage=update.usage * (1 + 1e-6)), spec)


@pytest.mark.parametrize("name", ["pool.keys.1", "pool.values.2", "gate.hidden.bias", "gate.output.weight"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda array: array * np.nan, "array NAME holds values that are not finite"),
        (lambda array: np.where(np.arange(array.size).reshape(array.shape) == 1, np.float32(np.inf), array), "finite"),
        (lambda array: array[..., :-1], r"array NAME has shape .*, expected \["),
        (lambda array: array[None], r"array NAME has shape \[1, .*, expected \["),
        (lambda array: array.astype(np.float64), "array NAME is float64, expected float32"),
        (lambda array: array.astype(np.float16), "array NAME is float16, expected float32"),
    ],
    ids=["NaN", "one inf", "cut", "an axis more", "float64", "float16"],
)
def test_a_spoilt_array_is_rejected_by_name(
    update: TrainReply, spec: MixtureSpec, name: str, spoil: object, reason: str
) -> None:
    update.arrays[name] = spoil(update.arrays[name])  # type: ignore[operator]
    with pytest.raises(ValueError, match=reason.replace("NAME", name)):
        check_update(update, spec)


def test_a_missing_array_is_rejected_by_name(update: TrainReply, spec: MixtureSpec) -> None:
    del update.arrays["pool.values.1"]
    with pytest.raises(ValueError, match=r"array pool\.values\.1 is missing"):
        check_update(update, spec)


@pytest.mark.parametrize("name", ["pool.keys.0", "gate.mean"])
def test_an_unknown_array_is_rejected_by_name(update: TrainReply, spec: MixtureSpec, name: str) -> None:
    update.arrays[name] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=f"array {name} is unknown"):
        check_update(update, spec)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_examples": 0, "usage": np.zeros(3)}, "num-examples is 0, expected at least 1"),
        ({"num_examples": -8}, "num-examples is -8, expected at least 1"),
        ({"usage": np.array([9.0, -1.0, 0.0])}, "usage holds values that are negative or not finite"),
        ({"usage": np.array([8.0, np.nan, 0.0])}, "usage holds values that are negative or not finite"),
        ({"usage": np.array([8.0, np.inf, 0.0])}, "usage holds values that are negative or not finite"),
        ({"usage": np.array([8.0, 8.0, 0.0])}, "usage sums to 16, expected num-examples, 8"),
        ({"usage": np.array([4.0, 4.0])}, r"usage has shape \[2\], expected \[3\]"),
        ({"usage": np.array(8.0)}, r"usage has shape \[\], expected \[3\]"),
        ({"loss": np.nan}, "loss is nan"),
        ({"loss": np.inf}, "loss is inf"),
    ],
)
def test_a_wrong_figure_is_rejected_by_name(
    update: TrainReply, spec: MixtureSpec, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_update(replace(update, **changes), spec)  # type: ignore[arg-type]


# --- Tasks, and the shared expert ---

TASKS = ("a", "b", "c")


def update_of(spec: MixtureSpec, usage: list[float], task_examples: list[float]) -> TrainReply:
    arrays = initial_arrays(spec, np.random.default_rng(0))
    trained = {name: arrays[name] for name in spec.trainable()}
    return TrainReply(trained, 1.5, 8, np.array(usage), 0.5, np.array(task_examples))


@pytest.mark.parametrize("task_examples", [[8.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_examples_of_tasks_that_can_be_pass(spec: MixtureSpec, task_examples: list[float]) -> None:
    """Fewer than all examples may be of tasks that the server knows by name."""
    spec = replace(spec, gate="both", tasks=TASKS)
    check_update(update_of(spec, [5.0, 3.0, 0.0], task_examples), spec)


@pytest.mark.parametrize(
    ("task_examples", "reason"),
    [
        ([8.0, 0.0], r"task-examples has shape \[2\], expected \[3\]"),
        ([], r"task-examples has shape \[0\], expected \[3\]"),
        ([9.0, -1.0, 0.0], "task-examples holds values that are negative or not finite"),
        ([8.0, np.nan, 0.0], "task-examples holds values that are negative or not finite"),
        ([8.0, 1.0, 0.0], "task-examples sums to 9, expected num-examples, 8, at most"),
        ([1e30, 0.0, 0.0], "task-examples sums to 1e\\+30, expected num-examples, 8, at most"),
    ],
)
def test_impossible_examples_of_tasks_are_rejected(spec: MixtureSpec, task_examples: list[float], reason: str) -> None:
    spec = replace(spec, gate="both", tasks=TASKS)
    with pytest.raises(ValueError, match=reason):
        check_update(update_of(spec, [5.0, 3.0, 0.0], task_examples), spec)


def test_examples_of_tasks_that_nobody_asked_for_are_rejected(update: TrainReply, spec: MixtureSpec) -> None:
    with pytest.raises(ValueError, match=r"task-examples has shape \[1\], expected \[0\]"):
        check_update(replace(update, task_examples=np.ones(1)), spec)


def test_the_shared_expert_is_used_by_every_example(spec: MixtureSpec) -> None:
    spec = replace(spec, shared_expert=True)
    check_update(update_of(spec, [5.0, 3.0, 8.0], []), spec)
    for usage, reason in (
        ([5.0, 2.0, 8.0], "usage sums to 7, expected num-examples, 8"),
        ([4.0, 2.0, 2.0], "usage sums to 6, expected num-examples, 8"),
        ([5.0, 3.0, 0.0], "usage of the shared expert is 0, expected num-examples, 8"),
        ([5.0, 3.0, 1e30], "usage of the shared expert is 1e\\+30, expected num-examples, 8"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_update(update_of(spec, usage, []), spec)


def test_a_prompt_form_of_another_kind_is_rejected(update: TrainReply, spec: MixtureSpec) -> None:
    with pytest.raises(ValueError, match=r"array pool\.hidden is missing"):
        check_update(update, replace(spec, form="hidden"))


@pytest.mark.parametrize(
    ("changes", "weights", "passes"),
    [
        ({}, [0.5, 0.25, 0.25], True),
        ({}, [0.5, 0.25, 0.25 + 1e-6], True),
        ({}, [0.5, 0.25, 1.0], False),
        ({}, [0.0, 0.0, 0.0], False),
        ({}, [1e308, 1e308, 1e308], False),
        ({"shared_expert": True}, [0.5, 0.5, 1.0], True),
        ({"shared_expert": True}, [0.5, 0.25, 0.25], False),
        ({"shared_expert": True}, [0.5, 0.5, 7.0], False),
        ({"num_experts": 1}, [1.0], True),
        ({"num_experts": 1}, [0.5], False),
    ],
)
def test_the_mean_weights_of_an_evaluation_are_those_that_a_gate_gives(
    spec: MixtureSpec, changes: dict[str, int], weights: list[float], passes: bool
) -> None:
    reply = EvaluateReply({"a": AnswerScore(1.0, 1, 1, 1)}, {"a": np.array(weights)})
    if passes:
        check_evaluate_reply(reply, replace(spec, **changes))  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=r"expert-use of task 'a' is .*, expected weights that sum to 1"):
        check_evaluate_reply(reply, replace(spec, **changes))  # type: ignore[arg-type]


SCORES = {"add": AnswerScore(1.0, 9, 9, 5), "age": AnswerScore(1.0, 9, 9, 3)}
TEXTS = {"add": {"rouge-l": MeasureSum(1.5, 5)}, "age": {"rouge-l": MeasureSum(0.0, 1)}}


@pytest.mark.parametrize(
    ("measured", "wanted"),
    [
        ({}, []),
        ({}, ["choice-accuracy"]),  # no example has choices
        (TEXTS, ["rouge-l"]),
        (TEXTS, ["choice-accuracy", "rouge-l"]),
        ({"age": {"choice-accuracy": MeasureSum(3.0, 3)}}, ["choice-accuracy"]),
    ],
)
def test_measures_that_were_asked_for_pass(measured: dict[str, dict[str, MeasureSum]], wanted: list[str]) -> None:
    check_measured(measured, SCORES, wanted)


@pytest.mark.parametrize(
    ("measured", "wanted", "reason"),
    [
        (TEXTS, [], "measure 'rouge-l' of task 'add' was not asked for"),
        (TEXTS, ["exact-match"], "measure 'rouge-l' of task 'add' was not asked for"),
        (TEXTS | {"sort": {}}, ["rouge-l"], "task 'sort' is measured, but it has no score"),
        (TEXTS | {"age": {"rouge-l": MeasureSum(1.0, 4)}}, ["rouge-l"], "of task 'age' is over 4 examples, expected 3"),
        ({"add": TEXTS["add"]}, ["rouge-l"], "measure 'rouge-l' of task 'age' is missing"),
        (TEXTS, ["rouge-l", "exact-match"], "measure 'exact-match' of task 'add' is missing"),
    ],
)
def test_other_measures_are_rejected_by_name(
    measured: dict[str, dict[str, MeasureSum]], wanted: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_measured(measured, SCORES, wanted)
