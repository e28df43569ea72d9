"""Prompts from the vocabulary are what the backbone computes for the sampled tokens, before a text."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from llama_by_hand import FLOAT32
from tiny import LAYERS, batch_of, byte_tokenizer, examples, mixture_for, tiny_backbone, tiny_llama, tokenized

from client.vocabulary import sampled_pool
from common.batches import collate
from common.injection import PromptedBackbone

SPECIALS = {0, 1, 2}


def drawn_tokens(spec, seed):
    """Draw as the client does: ordinary tokens alone, in one go."""
    ordinary = [token for token in range(len(byte_tokenizer())) if token not in SPECIALS]
    return np.random.default_rng(seed).choice(ordinary, (spec.num_experts, spec.tokens_per_expert))


def pool_and_tokens(num_experts=3, layer=2, form="kv", seed=4):
    backbone = tiny_backbone()
    spec = mixture_for(backbone, num_experts, layer, form=form).spec
    return backbone, spec, sampled_pool(backbone, spec, np.random.default_rng(seed)), drawn_tokens(spec, seed)


def test_key_value_prompts_are_the_cache_of_the_tokens_right_before_the_text():
    _, spec, pool, tokens = pool_and_tokens()
    assert {name: array.shape for name, array in pool.items()} == spec.pool()
    assert {array.dtype for array in pool.values()} == {np.dtype(np.float32)}
    for expert, ids in enumerate(tokens):
        cache = transformers.DynamicCache()
        tiny_llama()(
            input_ids=torch.tensor([ids.tolist()]), position_ids=torch.arange(-4, 0)[None], past_key_values=cache
        )
        for layer in range(2, LAYERS):
            keys, values = (kept[0].transpose(0, 1) for kept in (cache.layers[layer].keys, cache.layers[layer].values))
            torch.testing.assert_close(torch.from_numpy(pool[f"pool.keys.{layer}"][expert]), keys, **FLOAT32)
            torch.testing.assert_close(torch.from_numpy(pool[f"pool.values.{layer}"][expert]), values, **FLOAT32)


@pytest.mark.parametrize("form", ["kv", "hidden"])
def test_one_expert_from_layer_0_on_is_its_tokens_before_the_text(form):
    backbone, _, pool, tokens = pool_and_tokens(1, 0, form)
    mixture = mixture_for(backbone, 1, 0, form=form)
    mixture.load_arrays(pool)
    text = tokenized(examples(1))[0]
    logits, _ = PromptedBackbone(backbone, mixture).logits(collate([text], 2, torch.device("cpu")))
    ids = torch.tensor([tokens[0].tolist() + text.prompt_ids + text.answer_ids])
    expected = tiny_llama()(input_ids=ids).logits[0]
    torch.testing.assert_close(logits[0], expected[-logits.shape[1] :], **FLOAT32)


def test_hidden_prompts_are_the_hidden_states_of_the_tokens():
    _, spec, pool, tokens = pool_and_tokens(form="hidden")
    assert {name: array.shape for name, array in pool.items()} == spec.pool()
    for expert, ids in enumerate(tokens):
        states = tiny_llama()(input_ids=torch.tensor([ids.tolist()]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(torch.from_numpy(pool["pool.hidden"][expert]), states[2][0], **FLOAT32)


def test_no_special_token_is_drawn():
    """So many draws of 259 tokens would hold one."""
    backbone = tiny_backbone()
    spec = replace(mixture_for(backbone).spec, num_experts=40, tokens_per_expert=50, form="hidden")
    embedded = sampled_pool(backbone, replace(spec, kv_shapes={0: (2, 16, 16)}), np.random.default_rng(0))[
        "pool.hidden"
    ]
    table = tiny_llama().get_input_embeddings().weight.numpy()
    drawn = {int(np.abs(table - row).sum(axis=1).argmin()) for row in embedded.reshape(-1, embedded.shape[-1])}
    assert len(drawn) > 200
    assert not drawn & SPECIALS


def test_the_generator_decides_and_the_backbone_stays_plain():
    (backbone, _, first, _), (_, _, again, _), (_, _, other, _) = (pool_and_tokens(seed=seed) for seed in (1, 1, 2))
    for name, array in first.items():
        assert np.array_equal(array, again[name]) and not np.array_equal(array, other[name])
    batch = batch_of()
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    assert torch.equal(backbone.model(**inputs).logits, tiny_llama()(**inputs).logits)
