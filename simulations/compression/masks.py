"""Which weights go: the smallest ones of a layer, of a row, or of four."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import prune

from common.decoder import weight_by_rows
from simulations.compression.options import TWO_FOUR


def prune_by_magnitude(linear: nn.Module, sparsity: float) -> None:
    """Set the smallest weights of a linear layer to zero: the share `sparsity` of them, rounded to whole weights."""
    prune.l1_unstructured(linear, "weight", amount=sparsity)  # type: ignore[no-untyped-call]
    prune.remove(linear, "weight")  # type: ignore[no-untyped-call]


def prune_by_inputs(linear: nn.Module, norms: Float[Tensor, " in"], method: str, sparsity: float) -> None:
    """Set a linear layer's weights of the smallest Wanda scores to zero: in every row, or two of every four inputs.

    `norms` are the L2 norms of the layer's inputs over all calibration tokens. Raises ValueError where 2:4 finds inputs
    that are no multiple of four.
    """
    weight = weight_by_rows(linear)
    scores = wanda_scores(weight, norms)
    weight.masked_fill_(two_of_four(scores) if method == TWO_FOUR else smallest_of_rows(scores, sparsity), 0.0)


def wanda_scores(weight: Float[Tensor, "out in"], norms: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """Return |weight| times the norm of its input (Sun et al. 2023, arXiv 2306.11695, equation 1)."""
    return weight.abs() * norms.to(weight.dtype)


def smallest_of_rows(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """Mark the share `sparsity` of every row, rounded to whole weights: those of the smallest scores."""
    return _smallest(scores, round(sparsity * scores.shape[1]))


def two_of_four(scores: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
    """Mark, of every four inputs that stand together, the two of the smallest scores."""
    if scores.shape[1] % 4:
        raise ValueError(
            f"a linear layer has {scores.shape[1]} inputs, but 2:4 needs a multiple of 4: choose wanda or magnitude"
        )
    return _smallest(scores.reshape(len(scores), -1, 4), 2).flatten(1)


def _smallest(scores: Float[Tensor, "*rows in"], count: int) -> Bool[Tensor, "*rows in"]:
    # Stable: of equal scores the first ones go, on every machine.
    smallest = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, smallest, True)
