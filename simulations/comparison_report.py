"""What a comparison leaves: results.json, from which everything else follows, results.md and plots."""

import json
from pathlib import Path
from typing import Any

from common.atomic_file import replace_file, replace_json
from server.run_directory import ROUNDS
from simulations.comparison import Method
from simulations.comparison_runs import TEST, VALIDATION, Plan
from simulations.comparison_table import document
from simulations.figures import run_figures
from simulations.grid import portable
from simulations.provenance import provenance
from simulations.runs import Run
from simulations.simulate import read_result

JSON, DOCUMENT = "results.json", "results.md"
# Of a run's figures; what a method does not have is left out.
FIGURES = ("gate_entropy", "task_expert_information", "smallest_expert_use")
TRAFFIC = ("bytes_down_per_client_and_round", "bytes_up_per_client_and_round")
CLIENT = ["client", "tasks", "num_training_examples", "num_examples", "num_tokens"]
CLIENT += ["backbone_perplexity", "perplexity", "personalised_perplexity"]

Row = dict[str, Any]


def write(report: dict[str, Any], output: Path, with_plots: bool) -> None:
    """Write all that can be said so far. A reader sees old or new files, never a part of one."""
    if with_plots:
        from simulations.comparison_plot import plots  # matplotlib takes a second to import

        for name, png in plots(report).items():
            replace_file(output / name, png)
    replace_json(output / JSON, report)
    replace_file(output / DOCUMENT, document(report).encode())


def describe(plan: Plan, command: str) -> dict[str, Any]:
    """Return what is known of a comparison: where it ran, and a row for each method with one for each finished run."""
    comparison = plan.comparison
    methods, done = {}, []
    for name in comparison.compared:
        methods[name], found = _describe_method(plan, comparison.methods[name])
        done += found
    for method in plan.searches():
        runs = [plan.run(method, rate, seed, VALIDATION) for rate in method.rates for seed in comparison.search_seeds]
        done += [run.directory for run in runs if run.is_done()]
    return {
        "command": command,
        **provenance(done),
        "shared": {key: portable(value) for key, value in comparison.shared.items()},
        "seeds": list(plan.seeds),
        "split": TEST,
        "search": {
            "split": VALIDATION,
            "seeds": list(comparison.search_seeds),
            "num_rounds": comparison.search_num_rounds,
        },
        "methods": methods,
        "failed": plan.failed,
    }


def _describe_method(plan: Plan, method: Method) -> tuple[Row, list[Path]]:
    """Return a method's row, and the directories of its finished runs."""
    searching = plan.comparison.searching(method)
    searched = plan.searched(searching)
    rate = searched.get("chosen")
    runs = {seed: plan.run(method, rate, seed, TEST) for seed in plan.seeds} if rate or not searched else {}
    done = {seed: run for seed, run in runs.items() if run.is_done()}
    rows = [_describe_run(seed, run) for seed, run in done.items()]
    row: Row = {
        "label": method.label,
        "kind": method.kind,
        "group": method.group,
        "equal_bytes": method.equal_bytes,
        "local_of": method.local_of,
        "searched_as": method.searched_as,
        "settings": {key: portable(value) for key, value in method.settings.items()},
        "source": method.source and {key: portable(value) for key, value in method.source.items()},
        "search": searched if searching is method else {},
        "learning_rate": rate,
        "at_edge": searched.get("at_edge", False),
        "num_parameters": rows[0]["num_parameters"] if rows else None,  # equal for all seeds
        "runs": [{key: value for key, value in each.items() if key != "num_parameters"} for each in rows],
    }
    return row, [run.directory for run in done.values()]


def _describe_run(seed: int, run: Run) -> Row:
    result, figures = read_result(run.directory), run_figures(run.directory)
    lines = [json.loads(line) for line in (run.directory / ROUNDS).read_text().splitlines()]
    rounds: list[Row] = []
    num_bytes, seconds = 0, 0.0
    for line in lines:
        num_bytes += line["bytes_down"] + line["bytes_up"]
        seconds += line["seconds"]
        rounds.append(
            {"round": line["round"], "perplexity": line["perplexity"], "bytes": num_bytes, "seconds": seconds}
        )
    return {
        "seed": seed,
        "perplexity": result["perplexity"],
        "backbone_perplexity": result["backbone_perplexity"],
        **{name: figures[name] for name in (*FIGURES, *TRAFFIC, "num_parameters") if name in figures},
        "rounds": rounds,  # bytes (down and up, of all clients) and seconds since the run began
        "clients": [{key: row[key] for key in CLIENT if key in row} for row in result["clients"]],
        "failed_clients": [
            {"round": line["round"], "step": step, "client": client, "reason": reason}
            for line in lines
            for step, failures in line.get("failed", {}).items()
            for client, reason in failures.items()
        ],
    }
