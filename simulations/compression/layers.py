"""Through the decoder layers from the first to the last, each seeing what the pruned ones below it send up."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.backbone import Backbone
from common.batches import Batch
from common.decoder import decoder_layers, entering, forward, hidden_at, linear_layers

PruneLinear = Callable[[nn.Module, Tensor], None]  # a linear layer, and the norms of its inputs


@torch.no_grad()
def prune_in_order(
    backbone: Backbone, batches: Sequence[Batch], prune: PruneLinear, on_layer: Callable[[float], None]
) -> None:
    """Prune the linear layers of every decoder layer by the norms of their inputs.

    The norms of a decoder layer are taken while it is whole and all below it are pruned, as in the reference (Sun et
    al. 2023, algorithm 1). `on_layer` is told which share is done. Raises ValueError where no text reaches a layer.
    """
    layers = decoder_layers(backbone.model)
    hidden = [hidden_at(backbone, 0, batch.input_ids, batch.attention_mask) for batch in batches]
    for index, layer in enumerate(layers):
        with summing_squares(layer) as sums:
            for batch, states in zip(batches, hidden, strict=True):
                _run_layer(backbone, index, batch, states)
        for name, linear in linear_layers(layer).items():
            if name not in sums:
                raise ValueError(
                    f"no calibration text reaches {name} of layer {index}: choose method magnitude or other texts"
                )
            prune(linear, sums[name].sqrt())
        hidden = [_run_layer(backbone, index, batch, states) for batch, states in zip(batches, hidden, strict=True)]
        on_layer((index + 1) / len(layers))


@contextmanager
def summing_squares(layer: nn.Module) -> Iterator[dict[str, Float[Tensor, " in"]]]:
    """Sum the squares of all inputs of a decoder layer's linear layers, by name, in float64."""
    sums: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        squares = args[0].flatten(0, -2).double().square().sum(dim=0)
        sums[name] = sums[name] + squares if name in sums else squares

    hooks = [linear.register_forward_pre_hook(partial(add, name)) for name, linear in linear_layers(layer).items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def _run_layer(
    backbone: Backbone, index: int, batch: Batch, states: Float[Tensor, "batch seq hidden"]
) -> Float[Tensor, "batch seq hidden"]:
    """Run one decoder layer alone; return what it sends up, or, past the last one, what came in."""
    with entering(backbone.model, index, states):
        if index + 1 < backbone.num_layers:
            return hidden_at(backbone, index + 1, batch.input_ids, batch.attention_mask)
        forward(backbone, batch.input_ids, batch.attention_mask, num_logits=1)
        return states
