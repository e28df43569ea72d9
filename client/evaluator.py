"""Evaluation: answer scores per task, of the backbone alone or with the mixture."""

from collections.abc import Sequence

import torch

from common.answer_loss import answer_nll
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, in_order_of_length, pad_id
from common.example import Example
from common.injection import PromptedBackbone, forward
from common.perplexity import AnswerScore

EVALUATION_BATCH_SIZE = 64


@torch.no_grad()
def evaluate(
    model: Backbone | PromptedBackbone, examples: Sequence[Example], tokenized: Sequence[TokenizedExample]
) -> dict[str, AnswerScore]:
    """Score the answers of `examples` (`tokenized`, in the same order) per task, tasks in alphabetical order."""
    backbone = model.backbone if isinstance(model, PromptedBackbone) else model
    padding = pad_id(backbone.tokenizer)
    nll = [0.0] * len(examples)
    for indices in in_order_of_length(tokenized, EVALUATION_BATCH_SIZE):
        batch = collate([tokenized[index] for index in indices], padding, backbone.device)
        if isinstance(model, PromptedBackbone):
            logits, _ = model.logits(batch.input_ids, batch.attention_mask, batch.input_mask, batch.num_logits)
        else:
            logits = forward(model, batch.input_ids, batch.attention_mask, batch.num_logits)
        for index, value in zip(indices, answer_nll(logits, batch.labels).tolist(), strict=True):
            nll[index] = value
    scores: dict[str, AnswerScore] = {task: AnswerScore() for task in sorted({example.task for example in examples})}
    for example, tokens, value in zip(examples, tokenized, nll, strict=True):
        scores[example.task] += AnswerScore(value, len(tokens.answer_ids), len(example.output), 1)
    return scores
