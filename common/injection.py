"""Injection: prompts join the attention of the frozen backbone, each weighted by the gate.

Source of the idea: MoPs (arXiv 2310.02842). The mechanism is transformers' attention interface, so one implementation
serves every architecture that uses it: prompts never enter the KV cache and shift no position.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.backbone import Backbone
from common.mixture import Mixture, mean_over_input

ATTENTION = "fedmops"


@dataclass
class _Pass:
    """What the attention of one forward pass needs to know."""

    log_weights: Tensor | None = None  # [batch, experts]; None: the backbone alone


@dataclass(frozen=True)
class _LayerPrompts:
    """The prompts of one attention module. Not an nn.Module, so that the backbone does not adopt its parameters."""

    keys: Float[Tensor, "experts length kv_heads key_dim"]
    values: Float[Tensor, "experts length kv_heads value_dim"]
    current: _Pass


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


def _attention(
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
    prompts: _LayerPrompts | None = module.__dict__.get("prompts")
    if prompts is None or prompts.current.log_weights is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"this backbone's attention uses {name}, which the prompts' attention does not: choose another"
            )
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


AttentionInterface.register(ATTENTION, _attention)
# Without a mask function of the same name the mask would arrive as None and padding would be ignored.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def decoder_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """Find the stack of decoder layers: the outermost ModuleList of the right length."""
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not stacks:
        raise ValueError(
            f"found no stack of {num_layers} decoder layers in {type(model).__name__}: choose another backbone"
        )
    return min(stacks, key=lambda stack: len(stack[0]))[1]


def probe_kv_shapes(backbone: Backbone, first_layer: int) -> dict[int, tuple[int, int, int]]:
    """Read (kv heads, key size, value size) of each layer from `first_layer` on, by a forward of one token.

    Raises ValueError when a layer's attention does not pass through transformers' attention interface.
    """
    return {layer: shape for layer, (_, shape) in _attentions(backbone).items() if layer >= first_layer}


@lru_cache(maxsize=1)
def _attentions(backbone: Backbone) -> dict[int, tuple[nn.Module, tuple[int, int, int]]]:
    """Find each layer's attention module and its (kv heads, key size, value size), by a forward of one token."""
    seen: dict[nn.Module, tuple[int, int, int]] = {}

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen[module] = (key.shape[1], key.shape[-1], value.shape[-1])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(ATTENTION, record)
    try:
        backbone.model.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            backbone.model(torch.zeros(1, 1, dtype=torch.long, device=backbone.device), use_cache=False)
    finally:
        AttentionInterface.register(ATTENTION, _attention)
    found = {}
    layers = decoder_layers(backbone.model, backbone.num_layers)
    for index, layer in enumerate(layers):
        attentions = [module for module in layer.modules() if module in seen]
        if not attentions:
            raise ValueError(
                f"{type(backbone.model).__name__} does not pass its attention through transformers' interface "
                f"(layer {index}): choose a backbone that does, such as a Llama or Qwen"
            )
        found[index] = (attentions[0], seen[attentions[0]])
    return found


def injection_layer(backbone: Backbone, configured: int) -> int:
    """Turn the configured layer into one of the backbone's: -1 is the middle. Raises ValueError past the last layer."""
    if configured >= backbone.num_layers:
        raise ValueError(
            f"injection-layer must be at most {backbone.num_layers - 1}, the backbone's last layer, got {configured}"
        )
    return backbone.num_layers // 2 if configured < 0 else configured


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input is wanted."""


def hidden_at(
    backbone: Backbone, layer: int, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq hidden"]:
    """Return the hidden states that enter `layer`; the layers from there on are not run."""
    reached: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    hook = decoder_layers(backbone.model, backbone.num_layers)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        forward(backbone, input_ids, attention_mask, num_logits=1)
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return reached[0]


class PromptedBackbone:
    """A backbone with a mixture injected from a layer on. `remove` gives the plain backbone back."""

    def __init__(self, backbone: Backbone, mixture: Mixture) -> None:
        self.backbone = backbone
        self.mixture = mixture
        self.injection_layer = min(mixture.shape.kv_shapes)
        self._current = _Pass()
        self._input_mask: Tensor | None = None
        self.gate_input: Tensor | None = None  # [batch, hidden], of the latest pass
        attentions = _attentions(backbone)
        layers = decoder_layers(backbone.model, backbone.num_layers)
        self._attentions = [attentions[layer][0] for layer in mixture.shape.kv_shapes]
        for layer, module in zip(mixture.shape.kv_shapes, self._attentions, strict=True):
            module.__dict__["prompts"] = _LayerPrompts(
                mixture.pool.keys[str(layer)], mixture.pool.values[str(layer)], self._current
            )
        self._hook = layers[self.injection_layer].register_forward_pre_hook(self._weigh_experts, with_kwargs=True)

    def remove(self) -> None:
        """Take the mixture out of the backbone."""
        self._hook.remove()
        for module in self._attentions:
            module.__dict__.pop("prompts", None)

    def _weigh_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._input_mask is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self.gate_input = mean_over_input(hidden, self._input_mask)
            self._current.log_weights = self.mixture.log_weights(self.gate_input)

    def logits(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Int[Tensor, "batch seq"],
        input_mask: Int[Tensor, "batch seq"],
        num_logits: int,
    ) -> tuple[Float[Tensor, "batch num_logits vocab"], Float[Tensor, "batch experts"]]:
        """Run the backbone with the mixture on left-padded texts.

        Returns the logits of the last `num_logits` positions, in float32, and the experts' log weights. The gate reads
        the positions of `input_mask` only.
        """
        self._input_mask = input_mask
        try:
            logits = forward(self.backbone, input_ids, attention_mask, num_logits)
            assert self._current.log_weights is not None
            return logits, self._current.log_weights
        finally:
            self._input_mask = None
            self._current.log_weights = None


def forward(
    backbone: Backbone,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    num_logits: int,
) -> Float[Tensor, "batch num_logits vocab"]:
    """Run a backbone on left-padded texts; return float32 logits of the last `num_logits` positions."""
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    output = backbone.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=num_logits,
    )
    logits: Tensor = output.logits.float()
    return logits
