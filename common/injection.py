"""Injection: a mixture inside a frozen backbone, from a layer on."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.attention import ATTENTION, LayerPrompts, Pass, prompted_attention
from common.backbone import Backbone
from common.mixture import Mixture, mean_over_input


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
        for name in ("softcap", "s_aux"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{type(backbone.model).__name__} has {name} in its attention, which the prompts do not know: "
                    "choose another backbone"
                )
        seen[module] = (key.shape[1], key.shape[-1], value.shape[-1])
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(ATTENTION, record)
    try:
        backbone.model.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            backbone.model(torch.zeros(1, 1, dtype=torch.long, device=backbone.device), use_cache=False)
    finally:
        AttentionInterface.register(ATTENTION, prompted_attention)
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
    """A backbone with a mixture injected from a layer on; at the end of a `with` the backbone is plain again."""

    def __init__(self, backbone: Backbone, mixture: Mixture) -> None:
        self.backbone = backbone
        self.mixture = mixture
        self.injection_layer = min(mixture.shape.kv_shapes)
        self._current = Pass()
        self._input_mask: Tensor | None = None
        attentions = _attentions(backbone)
        layers = decoder_layers(backbone.model, backbone.num_layers)
        self._attentions = [attentions[layer][0] for layer in mixture.shape.kv_shapes]
        for layer, module in zip(mixture.shape.kv_shapes, self._attentions, strict=True):
            module.__dict__["prompts"] = LayerPrompts(
                mixture.pool.keys[str(layer)], mixture.pool.values[str(layer)], self._current
            )
        self._hook = layers[self.injection_layer].register_forward_pre_hook(self._weigh_experts, with_kwargs=True)

    def __enter__(self) -> "PromptedBackbone":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the mixture out of the backbone."""
        self._hook.remove()
        for module in self._attentions:
            module.__dict__.pop("prompts", None)

    def _weigh_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._input_mask is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._current.log_weights = self.mixture.log_weights(mean_over_input(hidden, self._input_mask))

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
