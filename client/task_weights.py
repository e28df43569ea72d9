"""The joint objective over tasks: how much a task counts in the loss."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from client.adapter import Trainee
from common.config import TaskWeights
from common.mixture import UNKNOWN_TASK
from common.transfer import send


class JointLoss:
    """The loss of a batch: its answers' negative log-likelihood, each task weighted.

    Per answer token, of task t among T tasks with n_t of the client's n examples: 1 by size, so that a task counts by
    its examples; n / (T n_t) uniformly, so that all count alike; exp(-s_t) learned, plus s_t / 2 per example, with s_t
    the log variance of the task (homoscedastic uncertainty, Kendall et al. 2018, equation 10).
    """

    def __init__(self, kind: TaskWeights, trainee: Trainee, tasks: Sequence[str]) -> None:
        counts = Counter(tasks)
        self._weights = {
            task: len(tasks) / (len(counts) * count) if kind == "uniform" else 1.0 for task, count in counts.items()
        }
        self._trainee = trainee

    def __call__(
        self, nll: Float[Tensor, " some"], num_tokens: Tensor, tasks: Sequence[str], num_texts: int
    ) -> Float[Tensor, ""]:
        """Weigh the answers' summed negative log-likelihoods, of some or all texts of a batch.

        `num_tokens` are those of all answers of the batch, `num_texts` its texts: what this returns for its parts adds
        up to the batch's.
        """
        log_variances = self._trainee.task_log_variances
        if log_variances is None:
            weights = send(torch.tensor([self._weights[task] for task in tasks]), nll.device)
            return (weights * nll).sum() / num_tokens
        ids = self._trainee.task_ids(tasks, nll.device)
        of_example = torch.where(ids == UNKNOWN_TASK, 0.0, log_variances[ids.clamp_min(0)])
        return (torch.exp(-of_example) * nll).sum() / num_tokens + of_example.sum() / (2 * num_texts)
