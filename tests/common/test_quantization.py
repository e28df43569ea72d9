"""Quantizations are told to transformers by name, and one whose gradients are wrong is refused."""

import sys

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama
from torch import nn
from transformers import TorchAoConfig

from common import backbone as backbone_module
from common.backbone import load_model
from common.quantization import check_gradients, quantization_config


class Model(nn.Module):
    """Two layers behind an embedding, of which the second may be of another kind."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 16)
        self.first, self.second = nn.Linear(16, 24), second

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


class Rounded(torch.autograd.Function):
    """Weights of whole steps in the forward pass; what the backward pass multiplies by is up to `spoil`."""

    @staticmethod
    def forward(ctx, x, weight, spoil):
        ctx.save_for_backward(spoil(weight.round()))
        return x @ weight.round().T

    @staticmethod
    def backward(ctx, above):
        return above @ ctx.saved_tensors[0], None, None


def drawn(seed: int = 1) -> torch.Tensor:
    return torch.randn(8, 24, generator=torch.Generator().manual_seed(seed))


class Quantized(nn.Module):
    def __init__(self, spoil):
        super().__init__()
        self.in_features, self.out_features, self.spoil = 24, 8, spoil
        self.weight = nn.Parameter(drawn(seed=0) * 3, False)

    def forward(self, x):
        return Rounded.apply(x, self.weight, self.spoil)


def test_a_layer_whose_gradient_is_that_of_its_forward_weights_is_taken():
    check_gradients(Model(Quantized(lambda weight: weight)), "rounded")
    with torch.no_grad():  # who loads a backbone to evaluate it
        check_gradients(Model(Quantized(lambda weight: weight)), "rounded")


@pytest.mark.parametrize(
    ("spoil", "cosine"),
    [
        (lambda weight: weight.flip(0), r"-?0\.\d+"),  # rows of other outputs, as after a repacking
        (lambda weight: -weight, r"-1\.000"),
        (lambda weight: weight * torch.nan, "nan"),
        (lambda weight: weight + 0.4 * weight.std() * drawn(), r"0\.9\d+"),
    ],
)
def test_a_layer_with_other_gradients_is_refused_by_name(spoil, cosine):
    with pytest.raises(ValueError, match=rf"quantization rounded gives wrong gradients .* weights is {cosine}, not 1"):
        check_gradients(Model(Quantized(spoil)), "rounded")


def test_a_layer_without_gradients_is_refused():
    class Cut(Quantized):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match=r"weights is 0\.000, not 1"):
        check_gradients(Model(Cut(lambda weight: weight)), "cut")


def test_dynamic_activations_of_torchao_are_refused(tmp_path, monkeypatch):
    """Their forward pass is right, their gradient is not, and nothing says so."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    wrong = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    monkeypatch.setattr(backbone_module, "quantization_config", lambda *_: wrong)
    with pytest.raises(ValueError, match="quantization int8-weights gives wrong gradients on this device"):
        load_model(str(tmp_path), "int8-weights", "cpu")


def test_a_missing_torchao_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"int8-weights needs the package torchao: pip install 'fedmops\[torchao\]'"):
        quantization_config("int8-weights", torch.bfloat16)
