"""The loss: cross entropy of answer tokens only."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from common.batches import IGNORED


def answer_nll(
    logits: Float[Tensor, "batch num_logits vocab"], labels: Int[Tensor, "batch answer"]
) -> Float[Tensor, " batch"]:
    """Sum the negative log-likelihood (nats) of each answer's tokens.

    Logits and labels end at the same position, so the logits before it predict the labels.
    """
    predictions = logits[:, :-1].transpose(1, 2)
    return F.cross_entropy(predictions, labels, ignore_index=IGNORED, reduction="none").sum(dim=1)
