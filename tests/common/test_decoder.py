"""A decoder from outside: where its layers begin and end, and which backbones fit."""

from dataclasses import replace

import pytest
import torch
import transformers
from tiny import CPU, LAYERS, VOCAB, batch_of, byte_tokenizer, tiny_backbone, tiny_llama, tiny_prompted

from common.backbone import Backbone
from common.decoder import decoder_layers, entering, forward, hidden_at, injection_layer, probe_kv_shapes


def test_hidden_at_equals_output_hidden_states_and_runs_no_further():
    backbone = tiny_backbone()
    batch = batch_of()
    expected = tiny_llama()(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=(batch.attention_mask.cumsum(1) - 1).clamp_min(0),
        output_hidden_states=True,
    ).hidden_states
    ran = []
    for index, layer in enumerate(backbone.model.model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    for layer in range(LAYERS):
        ran.clear()
        assert torch.equal(hidden_at(backbone, layer, batch.input_ids, batch.attention_mask), expected[layer])
        assert ran == list(range(layer))
    ran.clear()
    forward(backbone, batch.input_ids, batch.attention_mask, 1)
    assert ran == list(range(LAYERS))


def test_the_middle_is_the_default_injection_layer():
    backbone = tiny_backbone()
    assert [injection_layer(backbone, configured) for configured in (-1, 0, 3)] == [2, 0, 3]
    with pytest.raises(ValueError, match="injection-layer must be at most 3, the backbone's last layer, got 4"):
        injection_layer(backbone, 4)


def test_the_probe_reads_key_value_shapes_from_the_layer_on():
    assert probe_kv_shapes(tiny_backbone(), 1) == dict.fromkeys([1, 2, 3], (2, 16, 16))


# --- Passes that begin at a layer ---


CHANGES = [
    {},
    {"form": "hidden"},
    {"positions": "answer"},
    {"form": "hidden", "positions": "answer"},
    {"gate": "both", "tasks": ("shout", "turn")},
]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
def test_cached_hidden_states_equal_fresh_ones_to_the_bit(changes, layer):
    prompted, batch = tiny_prompted(layer=layer, **changes), batch_of()
    cached = hidden_at(prompted.backbone, layer, batch.input_ids, batch.attention_mask)
    results, gradients = [], []
    for hidden in (None, cached):
        prompted.mixture.zero_grad()
        logits, log_weights = prompted.logits(replace(batch, hidden=hidden))
        logits.square().mean().backward()
        results.append((logits, log_weights))
        gradients.append([p.grad.clone() for p in prompted.mixture.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert gradients[0] and all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_pass_that_begins_at_a_layer_runs_none_below_and_leaves_them_as_they_were():
    backbone, batch, ran = tiny_backbone(), batch_of(), []
    inputs = (backbone, batch.input_ids, batch.attention_mask, batch.num_logits)
    expected = forward(*inputs)
    for index, layer in enumerate(backbone.model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    with entering(backbone.model, 2, hidden_at(backbone, 2, batch.input_ids, batch.attention_mask)):
        ran.clear()
        assert torch.equal(forward(*inputs), expected)
        assert ran == [2, 3]
    ran.clear()
    assert torch.equal(forward(*inputs), expected)
    assert ran == [0, 1, 2, 3]
    for layer in backbone.model.model.layers:
        assert "forward" not in layer.__dict__ and not layer._forward_pre_hooks


def test_other_hidden_states_give_other_logits():
    prompted, batch = tiny_prompted(), batch_of()
    cached = hidden_at(prompted.backbone, 2, batch.input_ids, batch.attention_mask)
    other = replace(batch, hidden=cached.flip(0))
    assert not torch.allclose(prompted.logits(other)[0], prompted.logits(batch)[0], atol=0.1)


def test_a_pass_that_fails_leaves_the_layers_as_they_were():
    backbone, batch = tiny_backbone(), batch_of()
    hidden = hidden_at(backbone, 2, batch.input_ids, batch.attention_mask)
    with pytest.raises(ZeroDivisionError), entering(backbone.model, 2, hidden):
        1 / 0  # noqa: B018
    assert all("forward" not in layer.__dict__ for layer in backbone.model.model.layers)


# --- Backbones that do not fit ---


def foreign(family):
    sizes = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
    configs = {
        "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=2, **sizes),
        "gptj": lambda: transformers.GPTJConfig(n_embd=32, n_layer=2, n_head=2, rotary_dim=8, **sizes),
        "falcon": lambda: transformers.FalconConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **sizes
        ),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[family]()).eval().requires_grad_(False)
    return Backbone(model, byte_tokenizer(), family, CPU)


@pytest.mark.parametrize(
    ("family", "name"), [("bloom", "BloomForCausalLM"), ("gptj", "GPTJForCausalLM"), ("falcon", "FalconForCausalLM")]
)
def test_a_backbone_outside_the_attention_interface_is_refused_by_name(family, name):
    with pytest.raises(ValueError, match=f"{name} does not pass its attention through transformers' interface"):
        probe_kv_shapes(foreign(family), 1)


def test_a_model_without_a_stack_of_layers_is_refused():
    model = tiny_llama()
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="found no stack of 7 decoder layers in LlamaForCausalLM"):
        decoder_layers(model)
