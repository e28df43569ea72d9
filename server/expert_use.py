"""What tasks use which experts: collapse, dead experts and specialisation, as figures."""

from collections.abc import Iterable
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from common.wire.rounds import EvaluateReply, TrainReply

Use = dict[str, NDArray[np.float64]]  # gate mass `[experts]` by task


def gate_figures(
    updates: Iterable[TrainReply], evaluations: Iterable[EvaluateReply], num_gated: int
) -> dict[str, list[float] | float]:
    """Return what a round's replies say of the gate: the experts' use in the evaluation, its entropy in training."""
    use = use_by_task(evaluations)
    share = share_of_experts(use)
    return {
        "expert_use": share.tolist(),
        "smallest_expert_use": float(share.min()),
        "task_expert_information": task_expert_information({task: mass[:num_gated] for task, mass in use.items()}),
        "gate_entropy": fmean(update.gate_entropy for update in updates),
    }


def use_by_task(replies: Iterable[EvaluateReply]) -> Use:
    """Add up the gate mass that all clients' evaluation examples gave each expert."""
    mass: Use = {}
    for reply in replies:
        for task, mean_weights in reply.expert_use.items():
            mass[task] = mass.get(task, 0.0) + mean_weights * reply.scores[task].num_examples
    return dict(sorted(mass.items()))


def share_of_experts(use: Use) -> NDArray[np.float64]:
    """Return each expert's share of all gate mass, `[experts]`."""
    mass: NDArray[np.float64] = np.sum(list(use.values()), axis=0)
    share: NDArray[np.float64] = mass / mass.sum()
    return share


def task_expert_information(use: Use) -> float:
    """Return the mutual information (nats) of an example's task and the expert that the gate picks for it.

    0 when the gate treats all tasks alike, as it does when it has collapsed; at most log(experts).
    """
    joint = np.stack(list(use.values()))
    joint = joint / joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    positive = joint > 0
    return float((joint[positive] * np.log(joint[positive] / independent[positive])).sum())
