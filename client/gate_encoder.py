"""A separate model for the gate to read, in place of the backbone's own states."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from client.gate_statistics import gate_inputs
from common.backbone import Backbone, load_model
from common.batches import tokenize
from common.example import Example


@lru_cache(maxsize=1)
def _load(name: str, device: str) -> Backbone:
    model, tokenizer, place = load_model(name, "none", device)
    return Backbone(model, tokenizer, "", place)


def encoded(examples: Sequence[Example], name: str, device: str) -> Float[np.ndarray, "examples hidden"]:
    """Return the mean state of each example's prompt at the middle layer of a model; it never sees the answer."""
    encoder = _load(name, device)
    asked = [replace(example, output="") for example in examples]
    tokenized = [tokenize(example, encoder.tokenizer, encoder.max_positions) for example in asked]
    return gate_inputs(encoder, encoder.num_layers // 2, tokenized)
