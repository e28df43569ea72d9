"""Attention to prompts and text in one softmax, each expert weighted by the gate: the core of the method.

Source of the idea: MoPs (arXiv 2310.02842). The mechanism is transformers' attention interface, so one implementation
serves every architecture that uses it: prompts never enter the KV cache and shift no position.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "fedmops"


@dataclass
class Pass:
    """What the attention of one forward pass needs to know."""

    log_weights: Tensor | None = None  # [batch, experts]; None: the backbone alone


@dataclass(frozen=True)
class LayerPrompts:
    """The prompts of one attention module. Not an nn.Module, so that the backbone does not adopt its parameters."""

    keys: Float[Tensor, "experts length kv_heads key_dim"]
    values: Float[Tensor, "experts length kv_heads value_dim"]
    current: Pass


def attend_with_prompts(
    query: Float[Tensor, "batch heads seq key_dim"],
    key: Float[Tensor, "batch kv_heads total key_dim"],
    value: Float[Tensor, "batch kv_heads total value_dim"],
    visible: Tensor,
    prompt_keys: Float[Tensor, "experts length kv_heads key_dim"],
    prompt_values: Float[Tensor, "experts length kv_heads value_dim"],
    log_weights: Float[Tensor, "batch experts"],
    scaling: float,
) -> Float[Tensor, "batch seq heads value_dim"]:
    """Attend to the text and to all experts in one softmax, log w[k] added to the logits of expert k's tokens.

    So the gate scales the un-normalised attention paid to an expert: a weight of 0 removes it exactly, one-hot weights
    leave one expert alone. `visible` is a boolean mask, broadcastable to [batch, 1, seq, total]. Every query sees every
    prompt token.
    """
    batch, heads, seq, _ = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(batch, kv_heads, heads // kv_heads, seq, -1)
    text_logits = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * scaling
    text_logits = text_logits.masked_fill(~visible[:, :, None], torch.finfo(text_logits.dtype).min)
    pool_keys = prompt_keys.flatten(0, 1).to(query.dtype)  # [experts x length, kv_heads, key_dim]
    pool_values = prompt_values.flatten(0, 1).to(query.dtype)
    prompt_logits = torch.einsum("bkgsd,nkd->bkgsn", grouped, pool_keys) * scaling
    bias = log_weights.repeat_interleave(prompt_keys.shape[1], dim=1)[:, None, None, None, :]
    joint = torch.cat([prompt_logits.float() + bias, text_logits.float()], dim=-1)
    attention = torch.softmax(joint, dim=-1).to(value.dtype)
    to_prompts, to_text = torch.split(attention, [pool_keys.shape[0], key.shape[2]], dim=-1)
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
) -> tuple[Tensor, None]:
    """Serve as transformers' attention function: plain SDPA without prompts, the joint softmax with them."""
    prompts: LayerPrompts | None = module.__dict__.get("prompts")
    if prompts is None or prompts.current.log_weights is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if attention_mask is None:  # transformers leaves the mask out where it is plainly causal
        seq, total = query.shape[2], key.shape[2]
        attention_mask = torch.ones(seq, total, dtype=torch.bool, device=query.device).tril(total - seq)[None, None]
    out = attend_with_prompts(
        query,
        key,
        value,
        attention_mask,
        prompts.keys,
        prompts.values,
        prompts.current.log_weights,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return out.contiguous(), None


AttentionInterface.register(ATTENTION, prompted_attention)
# Without a mask function of the same name the mask would arrive as None and padding would be ignored.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
