"""What a mixture's configuration and a model must agree on, and what the one takes from the other."""

import logging
from typing import Any

from common.backbone import Backbone
from common.decoder import injection_layer, probe_kv_shapes
from common.fingerprint import fingerprint_of, quantization_of
from common.mixture_file import spec_fields, spec_of_fields
from common.mixture_spec import MixtureSpec
from common.peft_config import MixtureConfig

log = logging.getLogger(__name__)


def check_backbone(model: Any, config: MixtureConfig) -> None:
    """Raise ValueError unless the model comes from the files that the mixture was trained on, or any will do."""
    if config.any_backbone:
        return
    found, name = fingerprint_of(model), model.name_or_path or "this model"
    if config.fingerprint is None:
        config.fingerprint = found
    elif found is None:
        log.warning("%s has no files to compare with: is it the backbone that the mixture was trained on?", name)
    elif found != config.fingerprint:
        raise ValueError(
            f"the mixture was trained on a backbone with the fingerprint {config.fingerprint}, but {name} with "
            f"quantization {quantization_of(model)} has {found}: load the same weights, tokenizer and quantization, or "
            "pass any_backbone=True"
        )


def complete(config: MixtureConfig, model: Any) -> MixtureSpec:
    """Take from the model what the configuration leaves out. Raises ValueError where the two do not agree."""
    backbone = Backbone(model, None, config.fingerprint or "", model.device)
    first = min(map(int, config.kv_shapes)) if config.kv_shapes else config.injection_layer
    shapes = probe_kv_shapes(backbone, injection_layer(backbone, first))
    found = {str(layer): list(shape) for layer, shape in shapes.items()}
    config.kv_shapes = config.kv_shapes or found
    config.hidden_size = config.hidden_size or backbone.hidden_size
    config.injection_layer = min(shapes)
    spec = spec_of_fields(dict(vars(config)))
    if spec.hidden_size != backbone.hidden_size or spec_fields(spec)["kv_shapes"] != found:
        raise ValueError(
            f"the mixture is for hidden states of {spec.hidden_size} and keys and values {config.kv_shapes}, but the "
            f"model has {backbone.hidden_size} and {found}: choose the backbone that it was trained on"
        )
    return spec


def special_ids(model: Any) -> list[int]:
    """Return the model's tokens for begin, end and padding, as its configurations name them."""
    ids: set[int] = set()
    for config in (model.config.get_text_config(), model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(config, name, None)
            ids.update([value] if isinstance(value, int) else value or [])
    return sorted(ids)
