"""Gradients of every kind of mixture equal finite differences, and reach nothing else."""

import pytest
import torch
from tiny import (
    batch_of,
    logits_of,
    mixture_for,
    tiny_backbone,
    tiny_prompted,
)

from common.answer_loss import answer_nll
from common.injection import PromptedBackbone


def set_gate_to_expert(prompted: PromptedBackbone, expert: int) -> None:
    """Make the gate give one expert all weight: the others' is exp(-1e4), exactly 0."""
    gate = prompted.mixture.gate
    with torch.no_grad():
        gate.output.weight.zero_()
        gate.output.bias.zero_()
        gate.output.bias[expert] = 1e4


def loss_of(prompted, batch):
    logits, _ = logits_of(prompted, batch)
    return answer_nll(logits.double(), batch.labels).mean()


BY_TASK = {"gate": "task", "tasks": ("count", "shout"), "task_embedding_size": 5}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"form": "hidden"},
        {"positions": "answer", "shared_expert": True},
        {"form": "hidden", "positions": "answer", "top_k": 2},
        BY_TASK,
        BY_TASK | {"gate": "both", "form": "hidden"},
    ],
)
def test_gradients_equal_finite_differences(changes):
    backbone = tiny_backbone(torch.float64)
    prompted = PromptedBackbone(backbone, mixture_for(backbone, **changes).double())
    batch = batch_of()
    loss_of(prompted, batch).backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in prompted.mixture.named_parameters():
        if not parameter.requires_grad:
            assert changes["gate"] == "task" and name.startswith(("gate.hidden.", "gate.output.")), name
            continue
        # Along a direction that leans on the gradient, so that the slope is not lost in noise.
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm() + parameter.grad / parameter.grad.norm()
        slope = float((parameter.grad * direction).sum())
        step = 5e-3
        with torch.no_grad():
            parameter += step * direction
            above = loss_of(prompted, batch)
            parameter -= 2 * step * direction
            below = loss_of(prompted, batch)
            parameter += step * direction
        # The softmax and the logits are float32: the loss carries an error of about 1e-6, the slope one of 1e-3.
        assert float(above - below) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=1e-4), name


def test_only_pool_and_gate_have_gradients():
    prompted = tiny_prompted()
    loss_of(prompted, batch_of()).backward()
    for name, parameter in prompted.mixture.named_parameters():
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name
        assert name.startswith(("pool.", "gate."))
    for parameter in prompted.backbone.model.parameters():
        assert parameter.grad is None and not parameter.requires_grad


def test_an_expert_without_weight_gets_no_gradient():
    prompted = tiny_prompted()
    set_gate_to_expert(prompted, 1)
    loss_of(prompted, batch_of()).backward()
    for name, parameter in prompted.mixture.named_parameters():
        assert parameter.grad.isfinite().all(), name
        if name.startswith("pool."):
            assert (parameter.grad[[0, 2]] == 0).all() and (parameter.grad[1] != 0).any()
