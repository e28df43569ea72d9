"""Every family of decoders generates the same text with a key/value cache as without, alone as in a padded batch."""

from typing import Any

import pytest
import torch
from families import FAMILIES, family_backbone, family_model
from peft import get_peft_model
from peft_tiny import peft_warns
from tiny import byte_tokenizer, examples, mixture_for, tokenized

from common.attention import ATTENTION
from common.peft_mixture import MixtureConfig

pytestmark = peft_warns

LAYER, NEW_TOKENS = 2, 6
HOW = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "top_k": 20},
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def peft_family(family: str, form: str) -> Any:
    """Return a family's tiny model with a mixture as a peft adapter, whose prompts show."""
    given = mixture_for(family_backbone(family), layer=LAYER, scale=10.0 if form == "kv" else 50.0, form=form)
    config = MixtureConfig(
        num_experts=3, tokens_per_expert=4, gate_hidden_size=8, injection_layer=LAYER, form=form, any_backbone=True
    )
    model = get_peft_model(family_model(family, ATTENTION), config)
    model.base_model.prompt_mixture["default"].load_state_dict(given.state_dict())
    return model.eval()


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return left-padded prompts of different lengths, longer than the families' sliding windows."""
    ids = [text.prompt_ids for text in tokenized(examples(3))]
    length = max(map(len, ids))
    padded = torch.tensor([[2] * (length - len(row)) + row for row in ids])
    return padded, (padded != 2).long()


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor, how: str, **settings: Any) -> torch.Tensor:
    torch.manual_seed(0)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS} | HOW[how] | settings
    found: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    return found


@pytest.mark.parametrize("how", HOW)
@every_family
def test_generation_with_a_cache_equals_that_without(family: str, how: str) -> None:
    model, (ids, mask) = peft_family(family, "kv"), prompts()
    cached = generated(model, ids, mask, how, use_cache=True)
    assert torch.equal(cached, generated(model, ids, mask, how, use_cache=False))
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    assert not torch.allclose(plain, model(input_ids=ids, attention_mask=mask).logits[:, -1], atol=1e-3)


@every_family
def test_generation_from_hidden_prompts_with_a_cache_equals_that_without(family: str) -> None:
    model, (ids, mask) = peft_family(family, "hidden"), prompts()
    cached = generated(model, ids, mask, "greedy", use_cache=True)
    assert torch.equal(cached, generated(model, ids, mask, "greedy", use_cache=False))


@every_family
def test_a_padded_batch_generates_as_single_texts_do(family: str) -> None:
    assert byte_tokenizer().pad_token_id == 2
    model, (ids, mask) = peft_family(family, "kv"), prompts()
    assert not mask.all()
    together = generated(model, ids, mask, "greedy")
    for row, (one, own) in enumerate(zip(ids, mask, strict=True)):
        alone = one[own.bool()][None]
        assert torch.equal(together[row], generated(model, alone, torch.ones_like(alone), "greedy")[0])
