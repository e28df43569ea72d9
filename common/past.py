"""What the layers make of an input before its last token: where answers alone see prompts, none of it ever changes.

So training needs it once, without gradients, and its steps run the answers alone. The idea is design 6 of the method.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from common.backbone import Backbone
from common.batches import Batch
from common.decoder import KVShape, attention_modules, catching, entering, forward

KVShapes = Mapping[int, KVShape]


def past_width(kv_shapes: KVShapes) -> int:
    """Return how many numbers a token has: a key and a value for every head of every layer that sees prompts."""
    return sum(heads * (key_size + value_size) for heads, key_size, value_size in kv_shapes.values())


@torch.no_grad()
def compute_past(backbone: Backbone, kv_shapes: KVShapes, batch: Batch) -> Float[Tensor, "batch past pairs"]:
    """Run a batch's positions before its logits through the layers that see prompts, without any.

    The batch needs states where the first of these layers begins.
    """
    assert batch.hidden is not None
    length = batch.input_ids.shape[1] - batch.num_logits
    if not length:
        return batch.hidden.new_zeros(len(batch.hidden), 0, past_width(kv_shapes))
    model, modules = backbone.model, attention_modules(backbone.model)
    with catching(model) as caught, entering(model, min(kv_shapes), batch.hidden[:, :length]):
        forward(backbone, batch.input_ids[:, :length], batch.attention_mask[:, :length], num_logits=1)
    pairs = [caught[modules[layer][0]] for layer in sorted(kv_shapes)]
    return torch.cat([part.flatten(2).to(backbone.device) for pair in pairs for part in pair], dim=2)


def as_cache(backbone: Backbone, kv_shapes: KVShapes, past: Float[Tensor, "batch past pairs"]) -> DynamicCache:
    """Return the cache that a model which has read the past would go on from, in the layers that see prompts.

    The layers below are left out of passes that begin with states; in the cache they have the right length alone.
    """
    batch, length, _ = past.shape
    cache = DynamicCache(config=backbone.model.config)
    skipped = past.new_zeros(batch, 1, length, 1)
    for layer in range(min(kv_shapes)):
        cache.update(skipped, skipped, layer)
    begin = 0
    for layer, (heads, key_size, value_size) in sorted(kv_shapes.items()):
        device = next(attention_modules(backbone.model)[layer][0].parameters()).device
        pair = []
        for size in (key_size, value_size):
            flat = past[..., begin : begin + heads * size].to(device, backbone.model.dtype)
            pair.append(flat.view(batch, length, heads, size).transpose(1, 2))
            begin += heads * size
        cache.update(*pair, layer)
    return cache
