"""On a GPU a run gives what it gives on a CPU, whatever the quantization; skipped where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import backbone_on_disk, examples, mixture_for, tokenized

from client.app import app as client_app
from client.task_weights import JointLoss
from client.trainer import TrainSettings, new_optimizer, train, train_step
from common.backbone import load_backbone
from common.injection import PromptedBackbone
from common.passes import batches_of_passes
from server.app import app as server_app
from simulations.inline import run_inline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def perplexities(run_config, **changes):
    """Run and return each client's perplexity before and after, by client and phase."""
    settings = run_config(**changes)
    run_inline(server_app, client_app, settings, settings["num-clients"])
    lines = [json.loads(line) for line in (Path(settings["run-directory"]) / "metrics.jsonl").read_text().splitlines()]
    return {(line["round"], line["client"], line["task"]): line["perplexity"] for line in lines if "task" in line}


def test_a_run_on_a_gpu_is_that_on_a_cpu(run_config, tmp_path):
    same = {"compute_dtype": "float32", "num_rounds": 3, "num_local_steps": 8}
    on_cpu = perplexities(run_config, device="cpu", run_directory=str(tmp_path / "cpu"), **same)
    on_gpu = perplexities(run_config, device="cuda", run_directory=str(tmp_path / "cuda"), **same)
    assert on_gpu == pytest.approx(on_cpu, rel=2e-3)
    assert any(on_cpu[3, client, task] < 0.98 * on_cpu[0, client, task] for _, client, task in on_cpu)


# bitsandbytes' kernels for CPUs and GPUs round differently: measured, on these random weights, below 0.05 for both nf4,
# 0.2 for fp4 and 0.07 for int8.
@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("nf4", 0.05), ("nf4-double", 0.05), ("fp4", 0.4), ("int8", 0.15)]
)
def test_a_quantized_backbone_learns_on_a_gpu_as_on_a_cpu_and_stays_as_it_was(
    quantization, tolerance, run_config, tmp_path
):
    source = backbone_on_disk(tmp_path / "backbone")
    same = {"backbone": source, "quantization": quantization, "num_rounds": 1, "num_local_steps": 8}
    on_cpu = perplexities(run_config, device="cpu", run_directory=str(tmp_path / "cpu"), **same)
    model = load_backbone(source, quantization, "cuda").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    on_gpu = perplexities(run_config, device="cuda", run_directory=str(tmp_path / "cuda"), **same)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert on_gpu == pytest.approx(on_cpu, rel=tolerance)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_a_training_step_waits_for_nothing(tmp_path):
    backbone = load_backbone(backbone_on_disk(tmp_path / "backbone"), "nf4", "cuda")
    mixture = mixture_for(backbone).to(backbone.device)
    with PromptedBackbone(backbone, mixture) as prompted:
        settings = TrainSettings(3, 4, learning_rate=0.04, gate_learning_rate=0.002, balance_weight=0.02)
        texts = tokenized(examples(8))
        train(prompted, texts, settings, np.random.default_rng(0))  # what is made once is made
        optimizer = new_optimizer(mixture, settings)
        joint_loss = JointLoss("uniform", mixture, [text.task for text in texts])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                train_step(prompted, batches_of_passes(backbone, texts, 200), joint_loss, 0.02, optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
