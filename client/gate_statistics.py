"""Sums of the gate's input over a client's training examples: sent once, to standardise and pre-train the gate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.evaluator import EVALUATION_BATCH_SIZE
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, in_order_of_length, pad_id
from common.example import Example
from common.injection import hidden_at
from common.mixture import mean_over_input


@dataclass(frozen=True)
class GateSums:
    """Per task, in alphabetical order: how many examples `[tasks]`, sums and sums of squares `[tasks, hidden]`."""

    tasks: list[str]
    domains: list[str]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


@torch.no_grad()
def gate_sums(
    backbone: Backbone, layer: int, examples: Sequence[Example], tokenized: Sequence[TokenizedExample]
) -> GateSums:
    """Run the layers below `layer` and add up the gate's input by task."""
    domains = {example.task: example.domain for example in examples}
    tasks = sorted(domains)
    row = {task: index for index, task in enumerate(tasks)}
    counts = np.zeros(len(tasks))
    sums = np.zeros((len(tasks), backbone.hidden_size))
    squares = np.zeros_like(sums)
    padding = pad_id(backbone.tokenizer)
    for indices in in_order_of_length(tokenized, EVALUATION_BATCH_SIZE):
        batch = collate([tokenized[index] for index in indices], padding, backbone.device)
        inputs = mean_over_input(
            hidden_at(backbone, layer, batch.input_ids, batch.attention_mask), batch.input_mask
        ).double()
        rows = [row[examples[index].task] for index in indices]
        np.add.at(counts, rows, 1.0)
        np.add.at(sums, rows, inputs.cpu().numpy())
        np.add.at(squares, rows, inputs.square().cpu().numpy())
    return GateSums(tasks, [domains[task] for task in tasks], counts, sums, squares)
