"""Prompts of the form hidden: states at the injection layer, equal to a prefix of the text that begins there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from llama_by_hand import FLOAT32
from tiny import (
    CPU,
    HIDDEN,
    LAYERS,
    examples,
    logits_of,
    mixture_for,
    tiny_backbone,
    tiny_llama,
    tiny_prompted,
    tokenized,
)

from common.batches import collate
from common.injection import PromptedBackbone
from common.mixture_spec import MixtureSpec, num_parameters

# Of the size of the backbone's own hidden states, so that the prompts show.
SCALE = 30.0


def hidden_prompted(num_experts, layer, **changes):
    backbone = tiny_backbone()
    return PromptedBackbone(backbone, mixture_for(backbone, num_experts, layer, SCALE, form="hidden", **changes))


def run_layers(model, hidden, layer, positions, cache=None):
    """Run the layers from `layer` on one by one on `[batch, seq, hidden]`, causally."""
    rotary = model.model.rotary_emb(hidden, positions[None])
    for module in model.model.layers[layer:]:
        hidden = module(hidden, position_embeddings=rotary, past_key_values=cache)
    return hidden


def rows_of(batch_logits, texts):
    """Yield each text's token ids and the logits of its last positions."""
    for row, text in enumerate(texts):
        ids = torch.tensor([text.prompt_ids + text.answer_ids])
        yield ids, batch_logits[row, -len(text.answer_ids) - 1 :]


def test_one_expert_at_layer_0_is_prompt_tuning():
    prompted, plain, texts = hidden_prompted(1, 0), tiny_llama(), tokenized(examples(3))
    logits, _ = logits_of(prompted, collate(texts, 2, CPU))
    prompts = prompted.mixture.pool.hidden
    for ids, found in rows_of(logits, texts):
        embedded = torch.cat([prompts, plain.get_input_embeddings()(ids)], dim=1)
        expected = plain(inputs_embeds=embedded).logits[0]
        torch.testing.assert_close(found, expected[-len(found) :], **FLOAT32)
        without = plain(input_ids=ids).logits[0]
        assert not torch.allclose(found, without[-len(found) :], atol=0.1)


@pytest.mark.parametrize("layer", [1, LAYERS - 1])
def test_one_expert_at_a_layer_is_a_prefix_of_the_text_from_there_on(layer):
    prompted, plain, texts = hidden_prompted(1, layer), tiny_llama(), tokenized(examples(3))
    logits, _ = logits_of(prompted, collate(texts, 2, CPU))
    for ids, found in rows_of(logits, texts):
        entering = plain(input_ids=ids, output_hidden_states=True).hidden_states[layer]
        whole = torch.cat([prompted.mixture.pool.hidden, entering], dim=1)
        states = run_layers(plain, whole, layer, torch.arange(whole.shape[1]))
        expected = plain.lm_head(plain.model.norm(states))[0]
        torch.testing.assert_close(found, expected[-len(found) :], **FLOAT32)


def test_experts_are_the_keys_and_values_that_each_alone_has_before_the_text():
    prompted, plain, texts = hidden_prompted(3, 1), tiny_llama(), tokenized(examples(4))
    backbone = tiny_backbone()
    pairs = mixture_for(backbone, 3, 1)
    own = prompted.mixture.state_dict()
    with torch.no_grad():
        for name, tensor in pairs.state_dict().items():
            if name.startswith("gate."):
                tensor.copy_(own[name])
        for expert, hidden in enumerate(own["pool.hidden"]):
            cache = transformers.DynamicCache()
            run_layers(plain, hidden[None], 1, torch.arange(-4, 0), cache)
            for layer in range(1, LAYERS):
                pairs.pool.keys[str(layer)][expert] = cache.layers[layer].keys[0].transpose(0, 1)
                pairs.pool.values[str(layer)][expert] = cache.layers[layer].values[0].transpose(0, 1)
    batch = collate(texts, 2, CPU)
    logits, log_weights = logits_of(prompted, batch)
    expected, expected_weights = logits_of(PromptedBackbone(backbone, pairs), batch)
    assert torch.equal(log_weights, expected_weights)
    torch.testing.assert_close(logits, expected, **FLOAT32)


def test_a_one_hot_gate_leaves_one_expert():
    prompted, batch = hidden_prompted(3, 2), collate(tokenized(examples(4)), 2, CPU)
    gate = prompted.mixture.gate
    with torch.no_grad():
        gate.output.weight.zero_()
        gate.output.bias.copy_(F.one_hot(torch.tensor(1), 3) * 1e4)
    alone = hidden_prompted(1, 2)
    alone.mixture.pool.hidden.data = prompted.mixture.pool.hidden.data[1:2].clone()
    torch.testing.assert_close(logits_of(prompted, batch)[0], logits_of(alone, batch)[0], **FLOAT32)


def test_padding_changes_nothing():
    prompted, texts = hidden_prompted(3, 2), tokenized(examples(4))
    logits, log_weights = logits_of(prompted, collate(texts, 2, CPU))
    for row, text in enumerate(texts):
        alone, weights_alone = logits_of(prompted, collate([text], 2, CPU))
        torch.testing.assert_close(logits[row, -len(alone[0]) :], alone[0], **FLOAT32)
        torch.testing.assert_close(log_weights[row], weights_alone[0], **FLOAT32)


def test_the_pool_is_one_array_of_hidden_states():
    spec = MixtureSpec(6, 3, 4, 10, {2: (2, 8, 7), 3: (2, 8, 7)}, form="hidden", shared_expert=True)
    assert spec.pool() == {"pool.hidden": (6, 3, 10)}
    assert num_parameters(spec) == 6 * 3 * 10 + 4 * 10 + 4 + 5 * 4 + 5
    arrays = tiny_prompted(form="hidden").mixture.trained_arrays()
    assert arrays["pool.hidden"].nbytes == 4 * 3 * 4 * HIDDEN
    assert [name for name in arrays if name.startswith("pool.")] == ["pool.hidden"]
    assert np.isfinite(arrays["pool.hidden"]).all()
