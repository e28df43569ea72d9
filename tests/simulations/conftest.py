"""A tiny backbone with random weights, and small runs on it."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeRuns
from matplotlib.figure import Figure

from common.architecture import new_llama, save_model
from common.backbone_source import distribution_root
from common.config import default_run_config
from common.tokenizer import train_tokenizer
from simulations import runs
from simulations.cli import main
from simulations.runs import Run


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a random Llama of two layers, and a tokenizer of bytes; return its directory."""
    directory = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer([], 259)
    model = new_llama(
        tokenizer,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        sequence_length=128,
        seed=0,
        attention="eager",
    )
    save_model(model, tokenizer, directory, torch.float32)
    return str(directory)


@pytest.fixture(scope="session")
def small_run(tiny_backbone: str) -> dict[str, Any]:
    """Return the settings of a run of less than a second."""
    return {
        "backbone": tiny_backbone,
        "quantization": "none",
        "device": "cpu",
        "num-clients": 3,
        "num-rounds": 2,
        "train-examples": 4,
        "eval-examples": 2,
        "num-experts": 3,
        "tokens-per-expert": 2,
        "gate-hidden-size": 8,
        "num-local-steps": 2,
        "batch-size": 4,
    }


@pytest.fixture
def run_config(small_run: dict[str, Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that builds a small run's run_config; keys may be given with underscores."""

    def build(**changes: Any) -> dict[str, Any]:
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        return default_run_config(distribution_root()) | small_run | {"run-directory": str(tmp_path / "run")} | named

    return build


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory: what a command leaves behind shows."""
    directory = tmp_path / "work"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuns]:
    """Let no real run start; end what a broken program leaves behind."""
    fakes = FakeRuns()
    start = runs._start

    def keep(run: Run, errors: Path) -> subprocess.Popen[bytes]:
        fakes.processes.append(start(run, errors))
        return fakes.processes[-1]

    monkeypatch.setattr(Run, "command", lambda run: fakes.command(run))
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runs, "_start", keep)
    yield fakes
    for process in fakes.processes:
        process.kill()
        process.wait()


@pytest.fixture
def fedmops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Return a function that runs a `fedmops` command in this process and returns its exit code."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedmops", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code is None or isinstance(stop.value.code, int)
        return stop.value.code or 0

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C interrupt even where the tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep the figures that are saved, in their order."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
