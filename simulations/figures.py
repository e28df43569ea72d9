"""The figures of a finished run, read from its directory."""

import json
import math
from pathlib import Path
from typing import Any

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
    preparation, *rounds = map(json.loads, (directory / ROUNDS).read_text().splitlines())
    figures = {
        "perplexity": result["perplexity"],
        "backbone_perplexity": result["backbone_perplexity"],
        "num_worse_clients": num_worse_clients(result),
        "num_parameters": result["num_parameters"],
        "bytes_down_per_client_and_round": sum(line["bytes_down"] for line in rounds) / len(rounds) / num_clients,
        "bytes_up_per_client_and_round": sum(line["bytes_up"] for line in rounds) / len(rounds) / num_clients,
        "seconds": sum(line["seconds"] for line in [preparation, *rounds]),
    }
    for key in ("backbone_measures", "measures"):
        figures |= {key.replace("measures", name.replace("-", "_")): v for name, v in result.get(key, {}).items()}
    if "personalised_perplexity" in result:
        figures["personalised_perplexity"] = result["personalised_perplexity"]
    carried = {key: value for key, value in rounds[-1].items() if type(value) in (int, float)}
    return figures | {key: value for key, value in carried.items() if key not in NOT_CARRIED_OVER}
