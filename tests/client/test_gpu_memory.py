"""A client's share of a GPU is set before its backbone is loaded; what goes beyond it is one line with a mend."""

from pathlib import Path

import pytest
import torch
from flwr.app import Message

import client.answers
import client.app
from client.gpu_memory import limit_gpu_memory, out_of_memory_message
from common.config import default_run_config, read_config
from common.wire.rounds import instruction
from simulations.inline import InlineGrid

DEFAULTS = default_run_config(Path(__file__).parents[2])
TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.21 GiB is free."
    "\nProcess 17 has 78.03 GiB memory in use. See documentation for Memory Management"
)


@pytest.fixture
def calls(monkeypatch):
    """Keep what is asked of CUDA and of the loader, in order; the loader finds the GPU's memory used up."""
    calls = []

    def load(*_):
        calls.append("load")
        raise torch.cuda.OutOfMemoryError(TORCH_SAYS)

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *asked: calls.append(asked))
    monkeypatch.setattr(client.answers, "load_backbone", load)
    return calls


def failure_of(number, **changes):
    """Ask a client what it is; return why it failed."""
    settings = DEFAULTS | {name.replace("_", "-"): value for name, value in changes.items()}
    grid = InlineGrid(client.app.app, settings, settings["num-clients"])
    (reply,) = grid.send_and_receive([Message(instruction(0), grid.get_node_ids()[number], "query.prepare")])
    return reply.error.reason


def test_a_clients_share_is_set_before_its_backbone_is_loaded(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "clients.toml").write_text("[1]\ngpu-memory-fraction = 0.25\n[2]\ndevice = 'cpu'")
    for number in range(3):
        failure_of(number, clients=str(tmp_path / "clients.toml"), gpu_memory_fraction=0.5)
    assert calls == [(0.5, None), "load", (0.25, None), "load", "load"]


def test_on_a_cpu_no_share_is_set(calls):
    failure_of(0, device="cpu", gpu_memory_fraction=0.5)
    assert calls == ["load"]


def test_a_backbone_over_several_gpus_has_a_share_of_each(calls, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    failure_of(0, gpu_memory_fraction=0.5, device_map="auto")
    assert calls == [(0.5, 0), (0.5, 1), (0.5, 2), "load"]


def test_a_device_with_a_number_keeps_it(calls):
    limit_gpu_memory(torch.device("cuda", 3), 0.5)
    assert calls == [(0.5, 3)]


@pytest.mark.usefixtures("calls")
def test_a_gpu_whose_memory_is_used_up_is_one_line_with_what_to_do():
    reason = failure_of(0, device="cpu", gpu_memory_fraction=0.5, batch_size=4, quantization="none")
    assert reason == (
        "<class 'RuntimeError'>:<'this client's share of the GPU's memory is used up (tried to allocate 2.50 GiB): "
        "lower pass-tokens (4096) or max-sequence-tokens (512), or choose a quantization that takes less than none, or "
        "raise gpu-memory-fraction (0.5)'>"
    )


def test_without_a_limit_nothing_is_said_of_it():
    said = out_of_memory_message("CUDA out of memory.", read_config(DEFAULTS))
    assert said == (
        "the GPU's memory is used up: lower pass-tokens (4096) or max-sequence-tokens (512), or choose a quantization "
        "that takes less than nf4"
    )
