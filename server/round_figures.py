"""A round in figures, and in a line of the log."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from common.mixture_spec import Spec
from common.perplexity import geometric_mean, total
from common.wire.rounds import EvaluateReply, TrainReply
from server.exchange import Exchanged
from server.expert_use import gate_figures


def round_figures(trained: Exchanged[TrainReply], evaluated: Exchanged[EvaluateReply], spec: Spec) -> dict[str, Any]:
    """Return what a round's replies give: loss, perplexity, clients, failures, bytes, and the gate's use of experts."""
    clients = [total(reply.scores.values()) for reply in evaluated.replies.values()]
    figures: dict[str, Any] = {
        "perplexity": geometric_mean(client.perplexity for client in clients),
        "bits_per_character": total(clients).bits_per_character,
        "num_clients_trained": len(trained.replies),
        "num_clients_evaluated": len(evaluated.replies),
        "failed": {"train": trained.failures, "evaluate": evaluated.failures},
        "bytes_down": trained.bytes_down + evaluated.bytes_down,
        "bytes_up": trained.bytes_up + evaluated.bytes_up,
    }
    if trained.replies:
        figures["loss"] = fmean(update.loss for update in trained.replies.values())
    if spec.has_gate:
        figures |= gate_figures(trained.replies.values(), evaluated.replies.values(), spec.num_gated)
    return figures


def round_line(figures: Mapping[str, Any], num_rounds: int) -> str:
    """Say a round in one line."""
    return (
        f"round {figures['round']} of {num_rounds}: loss {figures.get('loss', math.nan):.3f}, "
        f"perplexity {figures['perplexity']:.3f}, {figures['num_clients_trained']} clients, "
        f"{figures['bytes_down'] / 1e6:.2f} MB down, {figures['bytes_up'] / 1e6:.2f} MB up, {figures['seconds']:.1f} s"
    )
