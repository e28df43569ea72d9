"""A decoder from outside: its layers, their keys and values, and passes that start or stop at a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.pytorch_utils import Conv1D

from common.attention import ATTENTION, Pairs, prompted_attention
from common.backbone import Backbone, no_interface_message

KVShape = tuple[int, int, int]  # key/value heads, key size, value size


@lru_cache(maxsize=8)  # hidden prompts ask for it at every step
def decoder_layers(model: Any) -> nn.ModuleList:
    """Find the stack of decoder layers: the outermost ModuleList of the right length."""
    num_layers = model.config.get_text_config().num_hidden_layers
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


def linear_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Find the linear layers within a module, by name: torch's, and GPT-2's, which go by the name Conv1D."""
    return {name: found for name, found in module.named_modules() if isinstance(found, nn.Linear | Conv1D)}


def weight_by_rows(linear: nn.Module) -> Float[Tensor, "out in"]:
    """Return a linear layer's weight, or a view of it where it is stored transposed; writes reach the layer."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator]
    return weight.T if isinstance(linear, Conv1D) else weight


@contextmanager
def catching(model: Any) -> Iterator[dict[nn.Module, Pairs]]:
    """Collect, by attention module, the keys and values `[batch, seq, kv_heads, size]` of the passes within."""
    caught: dict[nn.Module, Pairs] = {}

    def catch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        caught[module] = (key.transpose(1, 2), value.transpose(1, 2))
        return prompted_attention(module, query, key, value, *args, **kwargs)

    AttentionInterface.register(ATTENTION, catch)
    plain = take_over_attention(model)
    try:
        yield caught
    finally:
        AttentionInterface.register(ATTENTION, prompted_attention)
        give_back_attention(model, plain)


def take_over_attention(model: Any) -> str:
    """Let a model's attention be ours; return the name of the one that it had."""
    plain: str = model.config._attn_implementation
    if plain != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    return plain


def give_back_attention(model: Any, plain: str) -> None:
    """Let a model's attention be what it was."""
    if plain != ATTENTION:
        model.set_attn_implementation(plain)


@lru_cache(maxsize=8)
def attention_modules(model: Any) -> dict[int, tuple[nn.Module, KVShape]]:
    """Find each layer's attention module and its shape, by a forward of one token; no table of architectures needed.

    Raises ValueError when a layer's attention does not pass through transformers' attention interface.
    """
    with catching(model) as caught, torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    found = {}
    for index, layer in enumerate(decoder_layers(model)):
        attentions = [module for module in layer.modules() if module in caught]
        if not attentions:
            raise ValueError(no_interface_message(type(model).__name__))
        keys, values = caught[attentions[0]]
        found[index] = (attentions[0], (keys.shape[2], keys.shape[3], values.shape[3]))
    return found


def probe_kv_shapes(backbone: Backbone, first_layer: int) -> dict[int, KVShape]:
    """Read the shape of each layer's keys and values, from `first_layer` on."""
    return {layer: shape for layer, (_, shape) in attention_modules(backbone.model).items() if layer >= first_layer}


def injection_layer(backbone: Backbone, configured: int) -> int:
    """Turn the configured layer into one of the backbone's: -1 is the middle. Raises ValueError past the last layer."""
    if configured >= backbone.num_layers:
        raise ValueError(
            f"injection-layer must be at most {backbone.num_layers - 1}, the backbone's last layer, got {configured}"
        )
    return backbone.num_layers // 2 if configured < 0 else configured


def forward(
    backbone: Backbone,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    num_logits: int,
    past: Cache | None = None,
) -> Float[Tensor, "batch num_logits vocab"]:
    """Run a backbone on left-padded texts; return float32 logits of the last `num_logits` positions.

    With a `past` the texts' first positions, which it holds, are not run again.
    """
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    begin = 0 if past is None else past.get_seq_length()
    output = backbone.model(
        input_ids=input_ids[:, begin:],
        attention_mask=attention_mask,
        position_ids=position_ids[:, begin:],
        past_key_values=past,
        use_cache=False,
        logits_to_keep=num_logits,
    )
    logits: Tensor = output.logits.float()
    return logits


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input is wanted."""


def hidden_at(
    backbone: Backbone, layer: int, input_ids: Int[Tensor, "batch seq"], attention_mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq hidden"]:
    """Return the hidden states that enter `layer`; the layers from there on are not run."""
    reached: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(hidden_argument(args, kwargs))
        raise _ReachedError

    hook = decoder_layers(backbone.model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        forward(backbone, input_ids, attention_mask, num_logits=1)
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return reached[0]


def hidden_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among a decoder layer's arguments."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


@contextmanager
def entering(model: Any, layer: int, hidden: Float[Tensor, "batch seq hidden"]) -> Iterator[None]:
    """Let passes within begin at `layer` with these hidden states: the layers below are skipped."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        entered = hidden.to(hidden_argument(args, kwargs).dtype)
        return ((entered, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": entered})

    layers = decoder_layers(model)
    hook = layers[layer].register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    # accelerate puts a forward of its own into the layers of a backbone that is spread over devices.
    own = {skipped: skipped.__dict__["forward"] for skipped in layers[:layer] if "forward" in skipped.__dict__}
    for skipped in layers[:layer]:
        skipped.__dict__["forward"] = lambda *args, **kwargs: hidden_argument(args, kwargs)
    try:
        yield
    finally:
        hook.remove()
        for skipped in layers[:layer]:
            del skipped.__dict__["forward"]
            if skipped in own:
                skipped.__dict__["forward"] = own[skipped]


def keys_and_values(model: Any, first_layer: int, hidden: Float[Tensor, "texts length hidden"]) -> dict[int, Pairs]:
    """Return what each layer from `first_layer` on makes of short texts: `[texts, length, kv_heads, size]`.

    `hidden` are the texts' states where they enter `first_layer`. They stand before a text that begins at position 0,
    so rotary positions are negative: with one text, a query sees it as it sees a prefix.
    """
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=model.device)
    length = ids.shape[1]
    # Learned positions are added below the injection layer, and have no negative ones.
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None) is not None
    positions = torch.arange(-length if rotary else 0, 0 if rotary else length, device=model.device)
    with catching(model) as caught, entering(model, first_layer, hidden):
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions.expand(ids.shape),
            use_cache=False,
            logits_to_keep=1,
        )
    return {layer: caught[module] for layer, (module, _) in attention_modules(model).items() if layer >= first_layer}
