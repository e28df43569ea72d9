"""Tiny models with a mixture as a peft adapter, of every kind."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny import (
    CPU,
    examples,
    mixture_for,
    mixture_on_disk,
    tiny_backbone,
    tiny_llama,
    tokenized,
)
from transformers import AutoModelForCausalLM

import common.peft_mixture  # noqa: F401  makes the mixture known to peft
from common.batches import IGNORED, collate

# float32 sums of about a hundred terms, in another order by another kernel; measured 2e-5 on logits of size 1 to 10.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-4}
TASKS = ("count", "shout", "turn")
KINDS = {
    "plain": {},
    "both": {"gate": "both", "tasks": TASKS},
    "task": {"gate": "task", "tasks": TASKS, "learned_task_weights": True},
    "hidden": {"form": "hidden"},
    "answer": {"positions": "answer"},
    "hidden-answer": {"form": "hidden", "positions": "answer"},
    "shared": {"shared_expert": True, "num_experts": 4},
    "top": {"top_k": 2},
    "one": {"num_experts": 1},
}
kinds = pytest.mark.parametrize("kind", KINDS)
# peft 0.21.2 asks transformers 5.23 by a name that goes in version 6.
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def saved(directory, mixture, fingerprint="tiny", backbone=""):
    """Write a mixture as a run does; return where."""
    directory.mkdir(exist_ok=True)
    mixture_on_disk(directory, mixture, fingerprint, backbone)
    return directory


def tiny_mixture(kind="plain", **changes):
    return mixture_for(tiny_backbone(), **(KINDS[kind] | changes))


def loaded(directory, kind="plain", **changes):
    """Return a tiny model with an adapter, as peft loads it, and the mixture."""
    mixture = tiny_mixture(kind, **changes)
    return PeftModel.from_pretrained(tiny_llama(), saved(directory, mixture)), mixture


def inputs_of(batch):
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels[:, -batch.labels.shape[1] :] = batch.labels
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def prompts_of(count=3):
    """Return the prompts of examples as one left-padded batch for generate, their tasks, and each one alone."""
    texts = [replace(text, answer_ids=[]) for text in tokenized(examples(count))]
    batch = collate(texts, 2, CPU)
    singles = [torch.tensor([text.prompt_ids]) for text in texts]
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, batch.tasks, singles


def generated(model, inputs, num_tokens=8, **kwargs):
    kwargs = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]


def from_disk(directory, **kwargs):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **kwargs)
