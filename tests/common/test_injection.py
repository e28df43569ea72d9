"""Injection against written-out references: what prompts add, what they leave alone, and what the gate sees."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from llama_by_hand import FLOAT32, llama_by_hand
from tiny import (
    CPU,
    LAYERS,
    VOCAB,
    batch_of,
    byte_tokenizer,
    examples,
    logits_of,
    mixture_for,
    tiny_backbone,
    tiny_config,
    tiny_llama,
    tiny_prompted,
    tokenized,
)

from common.backbone import Backbone
from common.batches import collate
from common.decoder import decoder_layers, forward, hidden_at
from common.injection import PromptedBackbone


def set_gate_to_expert(prompted: PromptedBackbone, expert: int) -> None:
    """Make the gate give one expert all weight: the others' is exp(-1e4), exactly 0."""
    gate = prompted.mixture.gate
    with torch.no_grad():
        gate.output.weight.zero_()
        gate.output.bias.zero_()
        gate.output.bias[expert] = 1e4


# --- The whole model ---


@pytest.mark.parametrize("layer", [0, 2])
def test_logits_equal_a_llama_written_out(layer):
    prompted = tiny_prompted(layer=layer)
    texts = tokenized(examples(3))
    batch = collate(texts, 2, CPU)
    logits, _ = logits_of(prompted, batch)
    for row, text in enumerate(texts):
        ids = text.prompt_ids + text.answer_ids
        expected = llama_by_hand(prompted.backbone.model, ids, prompted.mixture, layer, len(text.prompt_ids))
        torch.testing.assert_close(logits[row].double(), expected[-batch.num_logits :], **FLOAT32)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_one_expert_is_a_prefix_in_the_key_value_cache(family):
    """Deep prompts from layer 0 on, as peft's prefix tuning places them; positions are not shifted."""
    sizes = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "gpt2":
            config = transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, initializer_range=0.15, **sizes)
        elif family == "qwen3":
            config = transformers.Qwen3Config(**(tiny_config().to_dict() | {"head_dim": 24, "model_type": "qwen3"}))
        else:
            config = tiny_config()
        model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    backbone = Backbone(model, byte_tokenizer(), family, CPU)
    mixture = mixture_for(backbone, num_experts=1, layer=0)
    batch = batch_of(3)
    prompted = PromptedBackbone(backbone, mixture)
    logits, log_weights = logits_of(prompted, batch)
    prompted.remove()
    assert mixture.gate is None and torch.equal(log_weights, torch.zeros(3, 1))

    cache = transformers.DynamicCache()
    for layer in range(backbone.num_layers):
        keys, values = (
            pairs[str(layer)].detach().transpose(1, 2).expand(3, -1, -1, -1)
            for pairs in (mixture.pool.keys, mixture.pool.values)
        )
        cache.update(keys, values, layer)
    expected = model(
        input_ids=batch.input_ids,
        attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), batch.attention_mask], dim=1),
        position_ids=(batch.attention_mask.cumsum(1) - 1).clamp_min(0),
        past_key_values=cache,
    ).logits
    torch.testing.assert_close(logits, expected[:, -batch.num_logits :], **FLOAT32)


def test_one_hot_gate_picks_its_expert():
    prompted = tiny_prompted(num_experts=3)
    batch = batch_of()
    for expert in range(3):
        set_gate_to_expert(prompted, expert)
        logits, log_weights = logits_of(prompted, batch)
        assert torch.equal(log_weights.exp(), F.one_hot(torch.full((4,), expert), 3).float())
        single = mixture_for(prompted.backbone, num_experts=1)
        for pairs, own in (
            (prompted.mixture.pool.keys, single.pool.keys),
            (prompted.mixture.pool.values, single.pool.values),
        ):
            for layer, tensor in pairs.items():
                own[layer].data = tensor.data[expert : expert + 1].clone()
        alone = PromptedBackbone(tiny_backbone(), single)
        torch.testing.assert_close(logits, logits_of(alone, batch)[0], **FLOAT32)


def test_a_prompt_bias_counts_every_prompt_token_as_so_many():
    """With a bias of log 3 each token counts as three of its kind; weights, and so their use, stay as they were."""
    batch = batch_of()
    biased, thrice = tiny_prompted(prompt_bias=math.log(3)), tiny_prompted()
    for parameters in (thrice.mixture.pool.keys, thrice.mixture.pool.values):
        for layer, parameter in parameters.items():
            parameters[layer] = torch.nn.Parameter(parameter.detach().repeat_interleave(3, dim=1))
    logits, log_weights = logits_of(biased, batch)
    expected, expected_weights = logits_of(thrice, batch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    assert torch.equal(log_weights, expected_weights)
    assert (logits - logits_of(tiny_prompted(), batch)[0]).abs().max() > 0.01


def test_without_prompts_the_backbone_is_bit_identical():
    batch = batch_of()
    padded = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    whole = {"input_ids": batch.input_ids[:1, -20:], "attention_mask": torch.ones(1, 20, dtype=torch.long)}
    positions = [(inputs["attention_mask"].cumsum(1) - 1).clamp_min(0) for inputs in (padded, whole)]
    plain = tiny_llama()  # never touched by us
    expected = [plain(**inputs, position_ids=at).logits for inputs, at in zip((padded, whole), positions, strict=True)]

    def equals_plain(backbone):
        return [
            torch.equal(forward(backbone, **inputs, num_logits=logits.shape[1]), logits)
            for inputs, logits in zip((padded, whole), expected, strict=True)
        ]

    backbone = tiny_backbone()
    assert equals_plain(backbone) == [True, True]
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    assert equals_plain(backbone) == [True, True]
    with_prompts, _ = logits_of(prompted, batch)
    assert not torch.allclose(with_prompts, expected[0][:, -batch.num_logits :], atol=0.1)
    assert equals_plain(backbone) == [True, True]
    prompted.remove()
    assert equals_plain(backbone) == [True, True]
    for module in backbone.model.modules():
        assert not module._forward_pre_hooks and "prompts" not in module.__dict__


def test_the_backbone_adopts_no_parameters():
    prompted = tiny_prompted()
    assert prompted.backbone.model.state_dict().keys() == tiny_llama().state_dict().keys()
    assert sum(1 for _ in prompted.backbone.model.parameters()) == sum(1 for _ in tiny_llama().parameters())


def test_padding_changes_nothing():
    prompted = tiny_prompted()
    texts = tokenized(examples(4))
    assert len({text.num_tokens for text in texts}) > 1
    batch = collate(texts, 2, CPU)
    logits, log_weights = logits_of(prompted, batch)
    for row, text in enumerate(texts):
        single = collate([text], 2, CPU)
        assert single.attention_mask.all()
        logits_alone, log_weights_alone = logits_of(prompted, single)
        torch.testing.assert_close(logits[row, -single.num_logits :], logits_alone[0], **FLOAT32)
        torch.testing.assert_close(log_weights[row], log_weights_alone[0], **FLOAT32)


def test_the_order_of_a_batch_changes_nothing():
    prompted = tiny_prompted()
    texts = tokenized(examples(4))
    logits, log_weights = logits_of(prompted, collate(texts, 2, CPU))
    turned, turned_weights = logits_of(prompted, collate(texts[::-1], 2, CPU))
    torch.testing.assert_close(logits.flip(0), turned, **FLOAT32)
    torch.testing.assert_close(log_weights.flip(0), turned_weights, **FLOAT32)


# --- The gate ---


def test_the_gate_never_sees_the_answer():
    prompted = tiny_prompted()
    batch = batch_of()
    _, log_weights = logits_of(prompted, batch)
    others = batch.input_ids.clone()
    for row, labels in enumerate(batch.labels):
        answer = int((labels >= 0).sum())
        others[row, -answer:] = 3 + (others[row, -answer:] + 7) % 250
    assert not torch.equal(others, batch.input_ids)
    changed = prompted.logits(replace(batch, input_ids=others))[1]
    assert torch.equal(changed, log_weights)
    others = batch.input_ids.clone()
    others[:, -30] += 1  # an input token, for comparison
    changed = prompted.logits(replace(batch, input_ids=others))[1]
    assert not torch.equal(changed, log_weights)


def test_the_gate_never_sees_padding():
    prompted = tiny_prompted()
    texts = tokenized(examples(4))
    weights = [logits_of(prompted, collate(texts, pad, CPU))[1] for pad in (2, 77)]
    assert torch.equal(*weights)


def test_the_gate_reads_the_mean_over_instruction_and_input(monkeypatch):
    prompted = tiny_prompted()
    texts = tokenized(examples(4))
    weigh, read = prompted.mixture.log_weights, []
    monkeypatch.setattr(
        prompted.mixture, "log_weights", lambda gate_input, ids: (read.append(gate_input), weigh(gate_input, ids))[1]
    )
    logits_of(prompted, collate(texts, 2, CPU))
    (gate_input,) = read
    for row, text in enumerate(texts):
        single = collate([text], 2, CPU)
        hidden = hidden_at(prompted.backbone, 2, single.input_ids, single.attention_mask)[0]
        assert text.special == [True] + [False] * (len(text.prompt_ids) - 1)
        expected = hidden[1 : len(text.prompt_ids)].mean(dim=0)
        torch.testing.assert_close(gate_input[row], expected, **FLOAT32)
    assert not gate_input.requires_grad


# --- Where prompts are ---


def test_layers_below_the_injection_layer_get_no_prompts():
    prompted = tiny_prompted(layer=2)
    with_prompts = ["prompts" in layer.self_attn.__dict__ for layer in decoder_layers(prompted.backbone.model)]
    assert with_prompts == [False, False, True, True]
    entered = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: entered.update({index: args[0]}), with_kwargs=True
        )
        for index, layer in enumerate(prompted.backbone.model.model.layers)
    ]
    batch = batch_of()
    logits_of(prompted, batch)
    for hook in hooks:
        hook.remove()
    for layer in range(LAYERS):
        plain = hidden_at(prompted.backbone, layer, batch.input_ids, batch.attention_mask)
        assert torch.equal(entered[layer], plain) == (layer <= 2)
        assert entered[layer].requires_grad == (layer > 2)  # the backward stops at the injection layer
