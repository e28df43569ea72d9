"""Evaluation: answer scores per task, of the backbone alone or with the mixture, and which experts a task uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.adapter import Tuned
from common.answer_loss import answer_nll
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import forward
from common.example import Example
from common.perplexity import AnswerScore

EVALUATION_BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """Per task, tasks in alphabetical order: the score, and the experts' mean weights `[experts]`.

    The backbone alone counts as one expert in full use, as a baseline does.
    """

    scores: dict[str, AnswerScore]
    expert_use: dict[str, NDArray[np.float64]]


@torch.no_grad()
def evaluate(model: Backbone | Tuned, examples: Sequence[Example], tokenized: Sequence[TokenizedExample]) -> Evaluation:
    """Score the answers of `examples` (`tokenized`, in the same order) per task."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    padding = pad_id(backbone.tokenizer)
    nll = [0.0] * len(examples)
    weights: list[NDArray[np.float64]] = [np.ones(1)] * len(examples)
    for indices in in_order_of_length(tokenized, EVALUATION_BATCH_SIZE):
        batch = collate([tokenized[index] for index in indices], padding, backbone.device)
        if isinstance(model, Backbone):
            logits = forward(model, batch.input_ids, batch.attention_mask, batch.num_logits)
        else:
            logits, log_weights = model.logits(batch)
            for index, row in zip(indices, log_weights.exp().double().cpu().numpy(), strict=True):
                weights[index] = row
        for index, value in zip(indices, answer_nll(logits, batch.labels).tolist(), strict=True):
            nll[index] = value
    tasks = sorted({example.task for example in examples})
    scores = dict.fromkeys(tasks, AnswerScore())
    for example, tokens, value in zip(examples, tokenized, nll, strict=True):
        scores[example.task] += AnswerScore(value, len(tokens.answer_ids), len(example.output), 1)
    use = {
        task: np.mean([row for example, row in zip(examples, weights, strict=True) if example.task == task], axis=0)
        for task in tasks
    }
    return Evaluation(scores, use)
