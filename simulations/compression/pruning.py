"""A pruned checkpoint: load a backbone's weights, set some to zero, save them as they were stored."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.backbone import Backbone, load_model
from common.batches import TokenizedExample
from common.decoder import decoder_layers, linear_layers
from common.example import Example
from simulations.compression.layers import prune_in_order
from simulations.compression.masks import prune_by_inputs, prune_by_magnitude
from simulations.compression.options import MAGNITUDE, Options
from simulations.compression.tokenized import fitting, unpadded_batches


def write_pruned(
    options: Options, calibration: Sequence[Example], directory: Path, on_layer: Callable[[float], None]
) -> int:
    """Write the pruned checkpoint; return by how many texts. `on_layer` is told which share of the layers is done.

    Raises ValueError for a backbone with weights that pruning would miss.
    """
    model, tokenizer, device = load_model(options.backbone, "none", options.device, as_stored=True)
    check_prunable(options.backbone, model)
    # In float32 while inputs are measured; the values that stay are then those that were stored, to the bit.
    stored = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    backbone = Backbone(model, tokenizer, "", device)
    texts = [tokens for _, tokens in fitting(calibration, backbone)]
    prune(options, backbone, texts, on_layer)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(stored[name])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    decoder_layers.cache_clear()  # it would keep this model in memory while the next ones are loaded
    return len(texts)


def prune(
    options: Options, backbone: Backbone, texts: Sequence[TokenizedExample], on_layer: Callable[[float], None]
) -> None:
    """Prune a float32 backbone's model in place."""
    if options.method == MAGNITUDE:
        layers = decoder_layers(backbone.model)
        for index, layer in enumerate(layers):
            for linear in linear_layers(layer).values():
                prune_by_magnitude(linear, options.sparsity)
            on_layer((index + 1) / len(layers))
        return
    by_inputs = partial(prune_by_inputs, method=options.method, sparsity=options.sparsity)
    prune_in_order(backbone, unpadded_batches(texts, backbone), by_inputs, on_layer)


def check_prunable(name: str, model: Any) -> None:
    """Raise ValueError for a model with large weights in its decoder layers that are not a linear layer's."""
    for layer in decoder_layers(model):
        missed = [weight for weight, parameter in layer.named_parameters() if parameter.ndim > 2]
        if missed:
            raise ValueError(
                f"the decoder layers of {name!r} hold weights outside of linear layers ({', '.join(missed)}), as those "
                "of mixtures of experts do: expected a dense model, choose another backbone"
            )
