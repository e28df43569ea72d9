"""The joint attention to prompts and text, against a loop in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from common.attention import (
    LONGEST_UNFUSED_TOKENS,
    Pass,
    Place,
    attend_with_prompts,
    backbone_attention,
    prompted_attention,
)
from common.fused_attention import attend_fused

BOTH = pytest.mark.parametrize("attend", [attend_with_prompts, attend_fused])


def attention_inputs(log_weights, length=2):
    """Draw query, key, value, mask and prompts: batch 2, 4 heads, 2 key/value heads, 3 queries, 5 texts' positions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_experts = log_weights.shape[1]
    visible = torch.rand(2, 1, 3, 5, generator=generator) < 0.6
    visible[:, :, :, 0] = True
    visible[1, :, 0, :] = False  # a padded query sees no text at all
    return (
        normal(2, 4, 3, 6),
        normal(2, 2, 5, 6),
        normal(2, 2, 5, 7),
        visible,
        normal(num_experts, length, 2, 6),
        normal(num_experts, length, 2, 7),
        log_weights,
        0.4,
    )


@BOTH
def test_attention_equals_a_loop_in_float64(attend):
    log_weights = torch.log(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.0, 0.1]], dtype=torch.float64))
    inputs = attention_inputs(log_weights)
    query, key, value, visible, prompt_keys, prompt_values, _, scaling = inputs
    expected = torch.zeros(2, 3, 4, 7, dtype=torch.float64)
    for b in range(2):
        for h in range(4):
            for s in range(3):
                g = h // 2  # two heads share a key/value head
                weights, values = [], []
                for k in range(3):
                    for n in range(2):
                        logit = float(query[b, h, s] @ prompt_keys[k, n, g]) * scaling
                        weights.append(float(log_weights[b, k].exp()) * math.exp(logit))
                        values.append(prompt_values[k, n, g])
                for t in range(5):
                    if visible[b, 0, s, t]:
                        weights.append(math.exp(float(query[b, h, s] @ key[b, g, t]) * scaling))
                        values.append(value[b, g, t])
                for weight, row in zip(weights, values, strict=True):
                    expected[b, s, h] += weight / sum(weights) * row
    got = attend(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # the softmax is taken in float32


@BOTH
def test_one_hot_weights_leave_one_expert_and_no_nan(attend):
    one_hot = torch.log(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))  # 0 and -inf
    query, key, value, visible, prompt_keys, prompt_values, _, scaling = attention_inputs(one_hot)
    prompt_keys, prompt_values = prompt_keys.requires_grad_(), prompt_values.requires_grad_()
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]] * 2, requires_grad=True)
    log_weights = torch.log_softmax(logits, dim=-1)
    got = attend(query, key, value, visible, prompt_keys, prompt_values, log_weights, scaling)
    alone = attend(query, key, value, visible, prompt_keys[1:2], prompt_values[1:2], torch.zeros(2, 1), scaling)
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-6)  # float32 softmax over 11 terms and over 7
    got.square().sum().backward()
    for prompts in (prompt_keys, prompt_values):
        assert (prompts.grad[[0, 2]] == 0).all()
        assert prompts.grad[1].isfinite().all() and (prompts.grad[1] != 0).any()
    assert logits.grad.isfinite().all()


@BOTH
def test_weights_scale_the_attention_before_the_softmax(attend):
    """An expert of weight w with one token counts as w tokens of weight 1: here 2 x 1/2."""
    split = torch.log(torch.tensor([[0.5, 0.5]] * 2))
    query, key, value, visible, prompt_keys, prompt_values, _, scaling = attention_inputs(split, length=1)
    same_keys, same_values = prompt_keys[:1].repeat(2, 1, 1, 1), prompt_values[:1].repeat(2, 1, 1, 1)
    got = attend(query, key, value, visible, same_keys, same_values, split, scaling)
    alone = attend(query, key, value, visible, same_keys[:1], same_values[:1], torch.zeros(2, 1), scaling)
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-6)


def is_fused(out):
    functions = [out.grad_fn]
    while functions[-1].next_functions:
        functions.append(functions[-1].next_functions[0][0])
    return any("FlashAttention" in type(function).__name__ for function in functions)


@pytest.mark.parametrize(
    ("dtype", "num_tokens", "fused"),
    [
        (torch.bfloat16, 8, False),
        (torch.bfloat16, LONGEST_UNFUSED_TOKENS, False),
        (torch.bfloat16, LONGEST_UNFUSED_TOKENS + 1, True),
        (torch.float32, 8, True),
    ],
)
def test_training_takes_the_kernel_that_is_faster_and_the_same_gradients(dtype, num_tokens, fused):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 2, num_tokens, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    visible[1, :, :, 0] = False  # padding, but for the padded query itself
    visible[1, :, 0, 0] = True
    gradients = []
    for wanted in (dtype, torch.float64):
        inputs = [tensor.to(wanted).requires_grad_() for tensor in drawn]
        if wanted == torch.float64:
            out = scaled_dot_product_attention(*inputs, attn_mask=visible).transpose(1, 2)
        else:
            out, _ = backbone_attention(nn.Identity(), *inputs, visible, None, 0.0, eager=False)
            assert is_fused(out) == fused
        gradients.append(torch.autograd.grad(out.double().pow(2).sum(), inputs))
    for got, expected in zip(*gradients, strict=True):
        # bfloat16 has 8 bits: its roundings, of inputs too, are some per cent of the largest value.
        tolerance = (0.04 if dtype == torch.bfloat16 else 1e-5) * float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


def test_evaluation_in_bfloat16_stays_fused():
    inputs = [torch.randn(1, 2, 8, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        out, _ = backbone_attention(nn.Identity(), *inputs, None, None, 0.0, eager=False)
        expected = scaled_dot_product_attention(*inputs, is_causal=True).transpose(1, 2)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("num_tokens", "fused"), [(LONGEST_UNFUSED_TOKENS, False), (LONGEST_UNFUSED_TOKENS + 1, True)])
@pytest.mark.parametrize("some_see", [False, True])
def test_long_texts_see_prompts_through_the_fused_kernel_with_the_same_gradients(num_tokens, fused, some_see):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    drawn = [normal(2, 4, num_tokens, 8), *(normal(2, 2, num_tokens, 8) for _ in range(2))]
    drawn += [normal(3, 2, 2, 8), normal(3, 2, 2, 8), torch.log_softmax(3 * normal(2, 3), dim=-1)]
    visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    visible[1, :, :, :4] = False
    sees_prompts = torch.arange(num_tokens).repeat(2, 1) >= num_tokens - 5 if some_see else None
    real = torch.ones(2, num_tokens, 1, 1)
    real[1, :4] = 0  # what a padded query attends to is nobody's
    gradients = []
    for wanted in (torch.float32, torch.float64):
        inputs = [tensor.to(wanted).requires_grad_() for tensor in drawn]
        query, key, value, prompt_keys, prompt_values, log_weights = inputs
        if wanted == torch.float64:
            out = attend_with_prompts(
                query, key, value, visible, prompt_keys, prompt_values, log_weights, 0.3, sees_prompts
            )
        else:
            module = nn.Identity()
            passed = Pass(log_weights, {0: (prompt_keys, prompt_values)}, sees_prompts)
            module.__dict__["prompts"] = Place(0, passed, eager=False)
            out, _ = prompted_attention(module, query, key, value, visible, 0.3)
            assert is_fused(out) == fused
        gradients.append(torch.autograd.grad((out * real).double().pow(2).sum(), inputs))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
