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
    predictions = logits[:, :-1].flatten(0, 1)
    nll = F.cross_entropy(predictions, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view(labels.shape).sum(dim=1)
