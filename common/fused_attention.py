"""The same joint softmax through torch's fused kernels, which never write out the attention: for long texts and GPUs.

A fused kernel takes no bias that is trained. So an expert's log weight rides in its keys: they get two more features,
into which the weight goes in two parts of the keys' precision, and all queries get a 1 there.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

MORE_FEATURES = 8  # the weight's two parts, and zeros: kernels want sizes in eights
# Of this weight nothing is left in float32; minus infinity times the zeros beside it would be no number.
LOWEST_LOG_WEIGHT = -1e4


def attend_fused(
    query: Float[Tensor, "batch heads seq key_dim"],
    key: Float[Tensor, "batch kv_heads total key_dim"],
    value: Float[Tensor, "batch kv_heads total value_dim"],
    visible: Bool[Tensor, "..."],
    prompt_keys: Float[Tensor, "experts length kv_heads key_dim"],
    prompt_values: Float[Tensor, "experts length kv_heads value_dim"],
    log_weights: Float[Tensor, "batch experts"],
    scaling: float,
    sees_prompts: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq heads value_dim"]:
    """Attend as `attention.attend_with_prompts` does; values may have MORE_FEATURES more features than keys at most."""
    batch, heads, seq, _ = query.shape
    value_size = value.shape[-1]
    groups = heads // key.shape[1]
    weights = log_weights.to(query.device).clamp_min(LOWEST_LOG_WEIGHT) / scaling
    weights = weights.repeat_interleave(prompt_keys.shape[1], dim=1)[:, None, :, None]  # [batch, 1, prompts, 1]
    coarse = weights.to(query.dtype)
    fine = (weights - coarse).to(query.dtype)
    own = _of_all_texts(prompt_keys, query)
    riding = F.pad(torch.cat((coarse, fine), dim=-1), (0, MORE_FEATURES - 2)).expand(*own.shape[:-1], -1)
    keys = torch.cat((torch.cat((own, riding), dim=-1), F.pad(key, (0, MORE_FEATURES))), dim=2)
    # Kernels want values of the keys' size.
    values = F.pad(torch.cat((_of_all_texts(prompt_values, query), value), dim=2), (0, keys.shape[-1] - value_size))
    ones = F.pad(query.new_ones(batch, heads, seq, 2), (0, MORE_FEATURES - 2))
    out = F.scaled_dot_product_attention(
        torch.cat((query, ones), dim=-1),
        keys.repeat_interleave(groups, dim=1),
        values.repeat_interleave(groups, dim=1),
        attn_mask=_mask(visible, sees_prompts, batch, seq, own.shape[2], query),
        scale=scaling,
    )
    return out[..., :value_size].transpose(1, 2)


def _of_all_texts(
    prompts: Float[Tensor, "experts length kv_heads size"], query: Float[Tensor, "batch heads seq key_dim"]
) -> Float[Tensor, "batch kv_heads prompts size"]:
    return prompts.flatten(0, 1).to(query).transpose(0, 1).expand(query.shape[0], -1, -1, -1)


def _mask(
    visible: Bool[Tensor, "..."],
    sees_prompts: Bool[Tensor, "batch seq"] | None,
    batch: int,
    seq: int,
    num_prompts: int,
    query: Float[Tensor, "batch heads seq key_dim"],
) -> Float[Tensor, "batch 1 seq prompts_and_total"]:
    """Write out what is seen as numbers to add; all are finite, for a padded query may see nothing."""
    seen = visible.new_ones(1, 1) if sees_prompts is None else sees_prompts.to(query.device)[:, None, :, None]
    parts = (seen.expand(batch, 1, seq, num_prompts), visible.expand(batch, 1, seq, visible.shape[-1]))
    lowest = torch.finfo(query.dtype).min
    return torch.zeros((), dtype=query.dtype, device=query.device).where(torch.cat(parts, dim=-1), lowest)
