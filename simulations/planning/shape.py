"""The sizes of a run: of its backbone and of what is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.adapter import AdaptedBackbone
from common.adapter_spec import AdapterSpec
from common.config import Config
from common.decoder import KVShape, injection_layer, probe_kv_shapes
from common.mixture_spec import Spec
from simulations.planning.weightless import weightless


@dataclass(frozen=True)
class Shape:
    """A backbone's number of parameters, what a client tells of its states, and what is trained on it."""

    num_parameters: int
    hidden_size: int
    gate_input_size: int
    kv_shapes: Mapping[int, KVShape]
    spec: Spec


def shape_of(config: Config, tasks: Sequence[str]) -> Shape:
    """Return the sizes of a run whose clients train on `tasks`. Raises ValueError as loading the backbone would."""
    gate_input_size = 0
    if config.gate_encoder:
        with weightless(config.gate_encoder, "none", config.device, "auto") as encoder:
            gate_input_size = encoder.hidden_size
    with weightless(config.backbone, "none", config.device, config.compute_dtype) as backbone:
        kv_shapes = probe_kv_shapes(backbone, injection_layer(backbone, config.injection_layer))
        spec: Spec = AdapterSpec()
        if config.method == "mixture":
            spec = config.mixture_spec(backbone.hidden_size, kv_shapes, tasks, gate_input_size)
        elif config.method != "hand-written":
            with AdaptedBackbone(backbone, config, tasks) as adapted:
                spec = adapted.spec
        num_parameters = sum(weight.numel() for weight in backbone.model.parameters())
        return Shape(num_parameters, backbone.hidden_size, gate_input_size or backbone.hidden_size, kv_shapes, spec)
