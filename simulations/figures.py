"""The figures of a finished run, read from its directory."""

import json
import math
from pathlib import Path
from typing import Any

from common.mixture_file import CARD, PEFT_TYPE, spec_of_fields
from common.mixture_spec import MixtureSpec, num_parameters
from common.saved_run import CONFIG
from server.run_directory import ROUNDS
from simulations.simulate import read_result

# Figures of a round that are the result's, or that are summed up over the rounds.
NOT_CARRIED_OVER = ("round", "perplexity", "bytes_down", "bytes_up", "seconds")


def num_worse_clients(result: dict[str, Any]) -> int:
    """Count the clients that the mixture leaves no better than their backbone alone; no reply is no better."""
    return sum(row.get("perplexity", math.inf) >= row["backbone_perplexity"] for row in result["clients"])


def run_figures(directory: Path) -> dict[str, float]:
    """Return a run's figures by name.

    Perplexities are geometric means over clients; bytes are means over rounds; what is not said otherwise (loss, gate
    entropy and all else that is one number) is the last round's. What a method does not have, such as a gate, has no
    figure. Raises RuntimeError when there is no result.
    """
    result = read_result(directory)
    num_clients = json.loads((directory / CONFIG).read_text())["num-clients"]
    spec = _spec(directory)
    preparation, *rounds = map(json.loads, (directory / ROUNDS).read_text().splitlines())
    figures = {
        "perplexity": result["perplexity"],
        "backbone_perplexity": result["backbone_perplexity"],
        "num_worse_clients": num_worse_clients(result),
        **_num_parameters(result, spec),
        "bytes_down_per_client_and_round": sum(line["bytes_down"] for line in rounds) / len(rounds) / num_clients,
        "bytes_up_per_client_and_round": sum(line["bytes_up"] for line in rounds) / len(rounds) / num_clients,
        "seconds": sum(line["seconds"] for line in [preparation, *rounds]),
    }
    carried = {key: value for key, value in rounds[-1].items() if type(value) in (int, float)}
    if spec and not spec.has_gate:
        carried.pop("gate_entropy", None)
    return figures | {key: value for key, value in carried.items() if key not in NOT_CARRIED_OVER}


def _spec(directory: Path) -> MixtureSpec | None:
    """Return the spec of the mixture that a run left, or None where it left another adapter or none."""
    card = json.loads((directory / CARD).read_text()) if (directory / CARD).is_file() else {}
    return spec_of_fields(card) if card.get("peft_type") == PEFT_TYPE else None


def _num_parameters(result: dict[str, Any], spec: MixtureSpec | None) -> dict[str, int]:
    """Count what is trained: as the result says, or else as the mixture's spec does."""
    if "num_parameters" in result:
        return {"num_parameters": result["num_parameters"]}
    return {"num_parameters": num_parameters(spec)} if spec else {}
