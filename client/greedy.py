"""The likeliest answers, token by token: one way for a backbone, a mixture and every baseline."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from client.adapter import Tuned
from common.backbone import Backbone
from common.batches import Batch, TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import forward

BATCH_SIZE = 64


def answer_logits(model: Backbone | Tuned, batch: Batch) -> Float[Tensor, "batch num_logits vocab"]:
    """Run a backbone, alone or tuned, on a batch; return float32 logits of the last positions."""
    if isinstance(model, Backbone):
        return forward(model, batch.input_ids, batch.attention_mask, batch.num_logits)
    return model.logits(batch)[0]


@torch.no_grad()
def greedy_answers(
    model: Backbone | Tuned,
    prompts: Sequence[TokenizedExample],
    max_new_tokens: int,
    longest: int,
    stops: Sequence[str] = (),
) -> list[str]:
    """Generate the likeliest token after the likeliest token; the answers that `prompts` carry are not looked at.

    An answer ends before the end-of-text token, before the first of `stops`, after `max_new_tokens`, or where prompt
    and answer have `longest` tokens. Each token takes a pass over the whole text, as scores do: no cache is kept, so
    that all kinds of models share it, gate and virtual tokens included. Texts that have ended are left out.
    """
    backbone = model if isinstance(model, Backbone) else model.backbone
    tokenizer, padding = backbone.tokenizer, pad_id(backbone.tokenizer)
    texts = [replace(prompt, answer_ids=[], states=None) for prompt in prompts]
    answers = [""] * len(texts)
    for indices in in_order_of_length(texts, BATCH_SIZE):
        going = indices
        for _ in range(max_new_tokens):
            going = [index for index in going if texts[index].num_tokens < longest]
            if not going:
                break
            batch = collate([texts[index] for index in going], padding, backbone.device)
            following = answer_logits(model, batch)[:, -1].argmax(dim=-1).tolist()
            goes_on = []
            for index, token in zip(going, following, strict=True):
                if token == tokenizer.eos_token_id:
                    continue
                texts[index].answer_ids.append(token)
                answers[index] = tokenizer.decode(texts[index].answer_ids, skip_special_tokens=True)
                if not any(stop in answers[index] for stop in stops):
                    goes_on.append(index)
            going = goes_on
    return [_before(answer, stops) for answer in answers]


def _before(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
