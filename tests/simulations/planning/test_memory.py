"""Planned memory against what torch's profiler sees of the real thing."""

from collections.abc import Sequence

import pytest
import torch

from common.backbone import load_backbone
from common.config import read_config
from simulations.planning.against_measured import measured
from simulations.planning.client_data import Texts
from simulations.planning.memory import plan_memory
from simulations.settings import resolve

TEXTS = Texts(longest=60, longest_answer=9, num_trained=8, num_evaluated=24)
TASKS = ("a", "b")


@pytest.mark.parametrize(
    "words",
    [
        ["quantization=none"],
        ["quantization=nf4"],
        ["quantization=nf4-double"],
        ["quantization=int8"],
        ["quantization=int8-weights"],
        ["quantization=none", "compute-dtype=float32"],
        ["num-experts=1", "tokens-per-expert=40"],
        ["prompt-form=hidden", "prompt-positions=answer", "gate=both"],
        ["method=lora", "lora-targets=all-linear"],
        ["method=prefix-tuning"],
        ["method=multitask-prompt-tuning"],
        ["method=hand-written"],
    ],
    ids=" ".join,
)
def test_what_is_planned_is_what_is_measured(words: Sequence[str]) -> None:
    if "quantization=int8-weights" in words:
        pytest.importorskip("torchao")
    config = read_config(resolve([*words, "device=cpu"]))
    planned = plan_memory(config, TEXTS, TASKS)
    backbone = load_backbone(config.backbone, config.quantization, "cpu", config.compute_dtype)
    weights, training, evaluation = measured(backbone, config, TEXTS)
    assert planned.weights == pytest.approx(weights, rel=0.03)
    # What products of int8 take is another library's affair; all else is ours, and is within 1 %.
    within = 0.15 if config.quantization.startswith("int8") else 0.03
    if config.method != "hand-written":
        assert planned.trained + planned.training == pytest.approx(training, rel=within)
    assert planned.evaluation == pytest.approx(evaluation, rel=within)


def test_a_plan_takes_no_memory_and_leaves_no_trace() -> None:
    config = read_config(resolve(["device=cpu"]))
    plan_memory(config, TEXTS, TASKS)
    assert type(torch.zeros(1)) is torch.Tensor
    assert torch.nn.Linear(2, 2).to(torch.float64).weight.dtype == torch.float64


def test_a_gpu_that_is_not_there_can_be_planned_for() -> None:
    config = read_config(resolve(["device=cuda", "quantization=none"]))
    assert plan_memory(config, TEXTS, TASKS).weights == 2 * 1_312_768 + 128  # bfloat16, and rotary frequencies
