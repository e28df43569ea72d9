"""Tests check the shapes that annotations promise, run on one thread, and never reach for the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Two threads on a busy machine are slower than one, and sums depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"

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
        "common.injection",
        "common.mixture",
        "simulations.compression.layers",
        "simulations.compression.masks",
    ],
    "beartype.beartype",
)
