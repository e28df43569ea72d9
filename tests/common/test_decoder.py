"""A decoder from outside: where its layers begin and end, and which backbones fit."""

import pytest
import torch
import transformers
from tiny import CPU, LAYERS, VOCAB, batch_of, byte_tokenizer, tiny_backbone, tiny_llama

from common.backbone import Backbone
from common.decoder import decoder_layers, forward, hidden_at, injection_layer, probe_kv_shapes


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
