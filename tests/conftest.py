"""Tests check the shapes that annotations promise, run on one thread, and never reach for the network."""

import os
import shutil
import tempfile

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Two threads on a busy machine are slower than one, and sums depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"
# States that other runs left are not asked for.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fedmops-tests-")

from jaxtyping import install_import_hook

install_import_hook(
    [
        "client.adapter",
        "client.evaluator",
        "client.gate_statistics",
        "client.greedy",
        "client.task_weights",
        "client.trainer",
        "common.answer_loss",
        "common.attention",
        "common.batches",
        "common.decoder",
        "common.fused_attention",
        "common.injection",
        "common.mixture",
        "simulations.compression.layers",
        "simulations.compression.masks",
    ],
    "beartype.beartype",
)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no states behind."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
