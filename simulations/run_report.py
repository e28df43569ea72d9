"""fedmops report: what a run did to every client, as a table and a picture; also while it goes on, or interrupted."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console

from common.atomic_file import replace_file
from common.perplexity import AnswerScore, geometric_mean, total
from common.saved_run import CONFIG
from server.run_directory import ALONE, METRICS, RESULT, ROUNDS
from simulations.report import data_line, gate_line, measures_table, result_table
from simulations.view import Tail

PICTURE = "clients.png"
SUMS = ("nll", "num_tokens", "num_characters", "num_examples")  # of a line of scores
Curves = dict[int, dict[int, float]]  # perplexity by client and round; the backbone's in round 0

Lines = list[dict[str, Any]]


def report(directory: Path, output: Path | None, console: Console) -> None:
    """Print a run's figures and draw every client's perplexity by round. Raises ValueError where nothing is scored."""
    if not (directory / CONFIG).is_file():
        raise ValueError(f"{directory} holds no run: give the directory that a run has left, or leaves")
    settings = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    metrics, rounds = Tail(directory / METRICS).new_lines(), Tail(directory / ROUNDS).new_lines()
    if not rounds:
        raise ValueError(
            f"{directory} has no scores yet: its clients prepare, or it ended before round 1 (see run.log)"
        )
    if (directory / RESULT).is_file():
        show_result(json.loads((directory / RESULT).read_text()), settings["method"], rounds[-1], console)
    else:
        console.print(result_table(so_far(metrics), settings["method"]))
        last, num_rounds = rounds[-1]["round"], settings["num-rounds"]
        console.print(f"after round {last} of {num_rounds}, of a run that goes on or was interrupted", soft_wrap=True)
    path = output or directory / PICTURE
    # Needs matplotlib, which takes a second to import; only worth it once the rest is right.
    from simulations.clients_plot import draw_clients

    replace_file(path, draw_clients(curves(metrics), settings["eval-split"]))
    console.print(f"every client by round: {path}", soft_wrap=True)


def show_result(result: dict[str, Any], method: str, last_round: dict[str, Any], console: Console) -> None:
    """Print the figures of a run that has ended."""
    console.print(result_table(result, method))
    if "backbone_measures" in result:
        console.print()
        console.print(measures_table(result))
    if said := data_line(result["data"]):
        console.print(said, soft_wrap=True)
    if "expert_use" in last_round:
        console.print(gate_line(last_round), soft_wrap=True)


def curves(metrics: Lines) -> Curves:
    """Return every client's perplexity over the rounds, from the lines of metrics.jsonl."""
    scores: dict[tuple[int, int], list[AnswerScore]] = defaultdict(list)
    for client, alone in _alone(metrics).items():
        scores[client, 0] += map(_score, alone)
    for line in metrics:
        if line["phase"] == "mixture":
            scores[line["client"], line["round"]].append(_score(line))
    found: Curves = defaultdict(dict)
    for (client, server_round), of_tasks in sorted(scores.items()):
        found[client][server_round] = total(of_tasks).perplexity
    return dict(found)


def so_far(metrics: Lines) -> dict[str, Any]:
    """Return what result.json would say of every client after the last round that it was scored in."""
    clients, of_client = [], curves(metrics)
    for client, alone in _alone(metrics).items():
        perplexities = of_client[client]
        row = {
            "client": client,
            "tasks": [line["task"] for line in alone],
            "num_examples": sum(line["num_examples"] for line in alone),
            "backbone_perplexity": perplexities[0],
        }
        later = [server_round for server_round in perplexities if server_round]
        clients.append(row | ({"perplexity": perplexities[max(later)]} if later else {}))
    scored = [row for row in clients if "perplexity" in row] or clients
    return {
        "clients": clients,
        "backbone_perplexity": geometric_mean(row["backbone_perplexity"] for row in scored),
        "perplexity": geometric_mean(row.get("perplexity", row["backbone_perplexity"]) for row in scored),
    }


def _alone(metrics: Lines) -> dict[int, Lines]:
    """Return what each client last told of its backbone alone."""
    found: dict[int, Lines] = {}
    for line in metrics:
        if line["phase"] == ALONE:
            lines = found.setdefault(line["client"], [])
            if lines and lines[0]["round"] != line["round"]:
                lines.clear()
            lines.append(line)
    return dict(sorted(found.items()))


def _score(line: dict[str, Any]) -> AnswerScore:
    return AnswerScore(**{name: line[name] for name in SUMS})
