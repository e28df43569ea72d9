"""How transformers is told to quantize, and a check that gradients pass through what it loads."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

NUM_PROBES = 8
# Rounding to bfloat16 leaves 0.999 and more; int8 with quantized activations, whose gradient is wrong, 0.07.
LOWEST_COSINE = 0.99


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """Return what `from_pretrained` takes for a value of the key `quantization`; None where it needs nothing.

    Raises ValueError for one that needs a package which is not installed.
    """
    if quantization in ("nf4", "nf4-double", "fp4"):
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization[:3],
            bnb_4bit_use_double_quant=quantization == "nf4-double",
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "int8-weights":
        from transformers import TorchAoConfig

        try:
            from torchao.quantization import Int8WeightOnlyConfig
        except ImportError:
            raise ValueError(
                "quantization int8-weights needs the package torchao: pip install 'fedmops[torchao]', or choose int8"
            ) from None
        return TorchAoConfig(Int8WeightOnlyConfig())
    return None  # none, and stored: the checkpoint says it itself


def quantized_layers(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers, by name, that transformers quantizes: all but the head and what is tied to others."""
    kept = set(get_keys_to_not_convert(model))
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in kept
    }


def check_gradients(model: nn.Module, quantization: str) -> None:
    """Check that each kind and shape of quantized layer passes gradients back through the weights of its forward pass.

    The weights are read off a pass of unit vectors, so that nothing needs to be known of how they are stored; an
    evaluation comes first, as some kernels spoil gradients from then on. Raises ValueError, naming the quantization.
    """
    checked = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        is_plain = type(module) is nn.Linear and type(weight.data) is Tensor  # type: ignore[union-attr]
        if is_plain or not hasattr(module, "in_features") or not hasattr(module, "out_features"):
            continue
        num_inputs: Any = module.in_features
        kind = (type(module), type(weight), num_inputs, module.out_features)
        if kind not in checked:
            checked.add(kind)
            cosine = _gradient_cosine(module, num_inputs, _dtype_of(model))
            if not cosine >= LOWEST_COSINE:  # NaN too
                raise ValueError(
                    f"quantization {quantization} gives wrong gradients on this device: the cosine between a layer's "
                    f"gradient and that of its weights is {cosine:.3f}, not 1: choose another, such as nf4 or none"
                )


def _dtype_of(model: nn.Module) -> torch.dtype:
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    return dtype


def _gradient_cosine(module: nn.Module, num_inputs: int, dtype: torch.dtype) -> float:
    """Return the cosine between a layer's gradient for some inputs and that of the weights of its forward pass."""
    device = next(iter(module.parameters()), torch.empty(0)).device
    with torch.no_grad():
        rows: Tensor = module(torch.eye(num_inputs, dtype=dtype, device=device))
        weights = (rows - module(torch.zeros(1, num_inputs, dtype=dtype, device=device))).float()  # [in, out]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_PROBES, num_inputs, generator=generator).to(device, dtype).requires_grad_()
    with torch.enable_grad():
        output = module(inputs)
    above = torch.randn(output.shape, generator=generator).to(device, output.dtype)
    if not output.requires_grad:
        return 0.0
    (got,) = torch.autograd.grad(output, inputs, above, allow_unused=True)
    if got is None:
        return 0.0
    expected = above.float() @ weights.T
    return float(torch.nn.functional.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0))
