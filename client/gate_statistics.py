"""Sums of the gate's input over a client's training examples: sent once, to standardise and pre-train the gate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from client.evaluator import EVALUATION_BATCH_SIZE
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import hidden_at
from common.example import Example
from common.mixture import mean_over_input
from common.wire.preparation import ClusterReply


@dataclass(frozen=True)
class GateSums:
    """Per task, in alphabetical order: how many examples `[tasks]`, sums and sums of squares `[tasks, hidden]`."""

    tasks: list[str]
    domains: list[str]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


@torch.no_grad()
def gate_inputs(
    backbone: Backbone, layer: int, tokenized: Sequence[TokenizedExample]
) -> Float[np.ndarray, "examples hidden"]:
    """Return what the gate reads of each example, in their order; run the layers below `layer` where need be."""
    inputs = np.zeros((len(tokenized), backbone.hidden_size), dtype=np.float32)
    padding = pad_id(backbone.tokenizer)
    for indices in in_order_of_length(tokenized, EVALUATION_BATCH_SIZE):
        batch = collate([tokenized[index] for index in indices], padding, backbone.device)
        hidden = batch.hidden
        if hidden is None:
            hidden = hidden_at(backbone, layer, batch.input_ids, batch.attention_mask)
        inputs[indices] = mean_over_input(hidden, batch.input_mask).cpu().numpy()
    return inputs


def sums_by_task(inputs: Float[np.ndarray, "examples hidden"], examples: Sequence[Example]) -> GateSums:
    """Add up the gate's inputs, and their squares, by task."""
    domains = {example.task: example.domain for example in examples}
    tasks = sorted(domains)
    inputs = inputs.astype(np.float64)
    is_of_task = np.array([[example.task == task for example in examples] for task in tasks], dtype=np.float64)
    return GateSums(
        tasks, [domains[task] for task in tasks], is_of_task.sum(axis=1), is_of_task @ inputs, is_of_task @ inputs**2
    )


def features(
    inputs: Float[np.ndarray, "examples hidden"],
    mean: Float[np.ndarray, " hidden"],
    scale: Float[np.ndarray, " hidden"],
    projection: Float[np.ndarray, "features hidden"],
) -> Float[np.ndarray, "examples features"]:
    """Standardise the gate's inputs and project them."""
    projected: NDArray[np.float64] = ((inputs - mean) / scale) @ projection.T
    return projected


def second_moments(projected: Float[np.ndarray, "examples features"]) -> Float[np.ndarray, "features features"]:
    """Sum the outer products of the features, in float32."""
    moments: NDArray[np.float32] = (projected.T @ projected).astype(np.float32)
    return moments


def sums_by_cluster(
    projected: Float[np.ndarray, "examples features"], centres: Float[np.ndarray, "clusters features"]
) -> ClusterReply:
    """Assign each example to its nearest centre; add up what each got: a client's part of a step of k-means."""
    # Centre by centre: all differences at once would be clusters times the features.
    distances = np.stack([((projected - centre.astype(np.float64)) ** 2).sum(axis=1) for centre in centres], axis=1)
    nearest = distances.argmin(axis=1)
    is_nearest = (nearest == np.arange(len(centres))[:, None]).astype(np.float64)
    return ClusterReply(is_nearest.sum(axis=1), is_nearest @ projected, float(distances.min(axis=1).sum()))
