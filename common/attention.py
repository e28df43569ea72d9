"""Attention to prompts and text in one softmax, each expert weighted by the gate: the core of the method.

Source of the idea: MoPs (arXiv 2310.02842). The mechanism is transformers' attention interface, so one implementation
serves every architecture that uses it: prompts never enter the KV cache and shift no position.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.fused_attention import MORE_FEATURES, attend_fused

ATTENTION = "fedmops"

# On a CPU a training step through a fused kernel takes up to three times as long as plain products on texts of so many
# tokens, and half as long from there on (docs/log.md). May go when torch's fused backward is fast.
LONGEST_UNFUSED_TOKENS = 255

Pairs = tuple[Tensor, Tensor]  # keys `[experts, length, kv_heads, key_dim]` and values of one layer's prompts


@dataclass
class Pass:
    """What the attention modules need to know of the forward pass that is running."""

    log_weights: Tensor | None = None  # [batch, experts]; None: the backbone alone
    pairs: dict[int, Pairs] = field(default_factory=dict)  # by layer
    sees_prompts: Tensor | None = None  # [batch, seq], bool: the positions that attend to prompts; None: all


@dataclass(frozen=True)
class Place:
    """What ties an attention module to the passes through its model."""

    layer: int
    current: Pass
    eager: bool  # the backbone alone is computed as the model's own file does it, not by SDPA
    bias: float = 0.0  # added to the log weights


def attend_with_prompts(
    query: Float[Tensor, "batch heads seq key_dim"],
    key: Float[Tensor, "batch kv_heads total key_dim"],
    value: Float[Tensor, "batch kv_heads total value_dim"],
    visible: Tensor,
    prompt_keys: Float[Tensor, "experts length kv_heads key_dim"],
    prompt_values: Float[Tensor, "experts length kv_heads value_dim"],
    log_weights: Float[Tensor, "batch experts"],
    scaling: float,
    sees_prompts: Bool[Tensor, "batch seq"] | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch seq heads value_dim"]:
    """Attend to the text and to all experts in one softmax, log w[k] added to the logits of expert k's tokens.

    So the gate scales the un-normalised attention paid to an expert: a weight of 0 removes it exactly, one-hot weights
    leave one expert alone. `visible` is a boolean mask, broadcastable to [batch, 1, seq, total]. A query sees every
    prompt token, or none where `sees_prompts` is false. `softcap` bounds the products of queries and keys (Gemma 2)
    before the weight is added; `sinks` are logits that take attention and give nothing (gpt-oss).

    Prompts and weights may lie on another device than the layer: a backbone may be spread over several.
    """
    batch, heads, seq, _ = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(batch, kv_heads, heads // kv_heads, seq, -1)
    pool_keys = prompt_keys.flatten(0, 1).to(query)  # [experts x length, kv_heads, key_dim]
    pool_values = prompt_values.flatten(0, 1).to(query)
    text_logits = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * scaling
    prompt_logits = torch.einsum("bkgsd,nkd->bkgsn", grouped, pool_keys) * scaling
    if softcap is not None:
        text_logits, prompt_logits = (torch.tanh(logits / softcap) * softcap for logits in (text_logits, prompt_logits))
    # Finite in the softmax's float32 too: a padded query that sees no prompts has nothing else.
    lowest = max(torch.finfo(text_logits.dtype).min, torch.finfo(torch.float32).min)
    text_logits = text_logits.masked_fill(~visible[:, :, None], lowest)
    bias = log_weights.to(query.device).repeat_interleave(prompt_keys.shape[1], dim=1)[:, None, None, None, :]
    if sees_prompts is not None:
        bias = bias.masked_fill(~sees_prompts.to(query.device)[:, None, None, :, None], -torch.inf)
    logits = [prompt_logits.float() + bias, text_logits.float()]
    if sinks is not None:
        logits.append(sinks.float().view(1, kv_heads, -1, 1, 1).expand(batch, -1, -1, seq, 1))
    attention = torch.softmax(torch.cat(logits, dim=-1), dim=-1).to(value.dtype)
    num_prompts, num_text = pool_keys.shape[0], key.shape[2]
    to_prompts, to_text = attention[..., :num_prompts], attention[..., num_prompts : num_prompts + num_text]
    mixed = torch.matmul(to_text, value[:, :, None]) + torch.einsum("bkgsn,nkd->bkgsd", to_prompts, pool_values)
    return mixed.reshape(batch, heads, seq, -1).transpose(1, 2)


def prompted_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Serve as transformers' attention function: the backbone's own without prompts, the joint softmax with them."""
    place: Place | None = module.__dict__.get("prompts")
    if place is None or place.current.log_weights is None:
        eager = place is not None and place.eager
        return backbone_attention(module, query, key, value, attention_mask, scaling, dropout, eager, **kwargs)
    current = place.current
    assert current.log_weights is not None
    seen = (
        _causal_mask(query, key) if attention_mask is None else attention_mask,
        *current.pairs[place.layer],
        current.log_weights + place.bias,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        current.sees_prompts,
    )
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    fits = softcap is None and sinks is None and value.shape[-1] <= key.shape[-1] + MORE_FEATURES
    if fits and not _fused_is_slower(query, key):
        return attend_fused(query, key, value, *seen).contiguous(), None
    return attend_with_prompts(query, key, value, *seen, softcap, sinks).contiguous(), None


def backbone_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    eager: bool,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as the backbone alone does: by SDPA, or by its own eager function where SDPA knows no softcap or sinks."""
    if not eager and kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
        slower = trains and query.dtype == torch.bfloat16 and _fused_is_slower(query, key)
        with sdpa_kernel(SDPBackend.MATH) if slower else contextlib.nullcontext():
            out, weights = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        return out, weights
    visible = _causal_mask(query, key) if attention_mask is None else attention_mask
    additive = torch.zeros((), dtype=query.dtype, device=query.device).where(visible, torch.finfo(query.dtype).min)
    own: tuple[Tensor, Tensor | None] = sys.modules[type(module).__module__].eager_attention_forward(
        module, query, key, value, additive, scaling=scaling, dropout=dropout, **kwargs
    )
    return own


def _fused_is_slower(query: Tensor, key: Tensor) -> bool:
    return query.device.type == "cpu" and query.shape[2] <= LONGEST_UNFUSED_TOKENS


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Write out the mask that transformers leaves out where it is plainly causal."""
    seq, total = query.shape[2], key.shape[2]
    return torch.ones(seq, total, dtype=torch.bool, device=query.device).tril(total - seq)[None, None]


AttentionInterface.register(ATTENTION, prompted_attention)
# Without a mask function of the same name the mask would arrive as None and padding would be ignored.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
