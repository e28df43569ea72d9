"""Tiny backbones with the baselines' adapters."""

import numpy as np
import pytest
from tiny import tiny_backbone

from client.adapter import AdaptedBackbone
from common.adapter_spec import ADAPTER_METHODS
from common.backbone import Backbone
from common.backbone_source import distribution_root
from common.config import Config, default_run_config, kebab, read_config
from common.mixture_arrays import Arrays

TASKS = ("count", "shout", "turn")
DEFAULTS = default_run_config(distribution_root())

methods = pytest.mark.parametrize("method", ADAPTER_METHODS)


def config_of(method: str, **changes: object) -> Config:
    named = {kebab(name): value for name, value in changes.items()}
    return read_config(DEFAULTS | {"method": method, "num-virtual-tokens": 4, "lora-rank": 2} | named)


def adapted_by(method: str, backbone: Backbone | None = None, **changes: object) -> AdaptedBackbone:
    return AdaptedBackbone(backbone or tiny_backbone(), config_of(method, **changes), TASKS)


def shifted(arrays: Arrays, scale: float = 0.3) -> Arrays:
    """Return values that all show: LoRA's B begins at 0, and with it A would not."""
    rng = np.random.default_rng(0)
    return {
        name: array + rng.normal(scale=scale, size=array.shape).astype(np.float32) for name, array in arrays.items()
    }


def with_shifted_values(adapted: AdaptedBackbone, scale: float = 0.3) -> AdaptedBackbone:
    adapted.load_arrays(shifted(adapted.arrays(), scale))
    return adapted
