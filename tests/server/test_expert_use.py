"""Figures of what tasks use which experts: known by hand, 0 when collapsed, log(experts) when perfect."""

import math

import numpy as np
import pytest

from common.perplexity import AnswerScore
from common.wire.rounds import EvaluateReply
from server.expert_use import share_of_experts, task_expert_information, use_by_task


def reply(**tasks: tuple[int, list[float]]) -> EvaluateReply:
    """Build a reply from tasks' numbers of examples and mean weights."""
    scores = {task: AnswerScore(1.0, 1, 1, count) for task, (count, _) in tasks.items()}
    return EvaluateReply(scores, {task: np.array(weights) for task, (_, weights) in tasks.items()})


def test_mass_by_task_adds_up_over_clients_by_examples() -> None:
    use = use_by_task([reply(b=(2, [0.5, 0.5]), a=(1, [1.0, 0.0])), reply(b=(6, [0.25, 0.75]))])
    assert list(use) == ["a", "b"]
    assert use["a"].tolist() == [1.0, 0.0]
    assert use["b"].tolist() == [2 * 0.5 + 6 * 0.25, 2 * 0.5 + 6 * 0.75]


def test_shares_are_of_all_mass() -> None:
    use = {"a": np.array([1.0, 0.0]), "b": np.array([2.0, 5.0])}
    assert share_of_experts(use).tolist() == [3 / 8, 5 / 8]


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
def test_a_gate_that_treats_all_tasks_alike_tells_nothing(weights: list[float]) -> None:
    use = use_by_task([reply(a=(3, weights), b=(5, weights))])
    assert task_expert_information(use) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("num_experts", [2, 8])
def test_a_perfect_gate_of_equal_tasks_tells_the_logarithm_of_the_experts(num_experts: int) -> None:
    use = {f"task {row}": 7.0 * weights for row, weights in enumerate(np.eye(num_experts))}
    assert task_expert_information(use) == pytest.approx(math.log(num_experts))


def test_the_information_is_that_by_hand() -> None:
    # Joint probabilities: a 1/8, 2/8; b 4/8, 1/8.
    use = {"a": np.array([1.0, 2.0]), "b": np.array([4.0, 1.0])}
    expected = (
        1 / 8 * math.log(1 / 8 / (3 / 8 * 5 / 8))
        + 2 / 8 * math.log(2 / 8 / (3 / 8 * 3 / 8))
        + 4 / 8 * math.log(4 / 8 / (5 / 8 * 5 / 8))
        + 1 / 8 * math.log(1 / 8 / (5 / 8 * 3 / 8))
    )
    assert task_expert_information(use) == pytest.approx(expected, rel=1e-12)


def test_one_task_or_one_expert_tells_nothing() -> None:
    assert task_expert_information({"a": np.array([1.0, 2.0])}) == pytest.approx(0.0, abs=1e-12)
    assert task_expert_information({"a": np.array([1.0]), "b": np.array([2.0])}) == pytest.approx(0.0, abs=1e-12)
