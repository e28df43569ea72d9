"""The prompt transfer gain of every run of a sweep: from which setting on do tasks disturb each other?"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from common.atomic_file import replace_file, replace_json
from common.perplexity import geometric_mean
from common.saved_run import CONFIG
from server.run_directory import RESULT
from simulations.grid import shown, value_of
from simulations.sweep_table import JSON, why_no_plot
from simulations.transfer import TRANSFER, prompt_transfer_gain

PLOT = "transfer.png"


def is_sweep(directory: Path) -> bool:
    """Tell a sweep's directory from a run's."""
    return (directory / JSON).is_file()


def transfer_by_setting(sweep: Path, alone: Path, num_processes: int, on_task: Callable[[int, int], None]) -> Table:
    """Measure the gain of every finished run; leave transfer.json and a plot; return a table, a line for each setting.

    Prompts that are trained alone serve all runs that they fit. Raises RuntimeError when the sweep has no result yet.
    """
    keys = list(json.loads((sweep / JSON).read_text())["axes"])
    rows: list[dict[str, Any]] = []
    for run in sorted(path.parent for path in (sweep / "runs").glob(f"*/{RESULT}")):
        settings = json.loads((run / CONFIG).read_text())
        found = prompt_transfer_gain(run, alone, num_processes, on_task)
        rows.append({"settings": {key: value_of(key, settings) for key in keys}, **found})
    if not rows:
        raise RuntimeError(f"no run of the sweep in {sweep} has a result: let it finish first")
    rows.sort(key=lambda row: ([_order(value) for value in row["settings"].values()], row["seed"]))
    replace_json(sweep / TRANSFER, {"axes": keys, "runs": rows})
    if not why_no_plot(keys):
        from simulations.plot import draw  # matplotlib takes a second to import

        measured = [(list(row["settings"].values()), row["joint_to_alone"]) for row in rows]
        replace_file(sweep / PLOT, draw(keys, measured, "perplexity: joint mixture to a prompt of its own"))
    return _table(keys, rows)


def _table(keys: list[str], rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Prompt transfer gain, over seeds")
    for name in (*keys, "gain", "s.d.", "joint to alone", "tasks worse"):
        table.add_column(name, justify="right")
    by_setting: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_setting.setdefault(tuple(row["settings"].values()), []).append(row)
    for setting, seeds in by_setting.items():
        gains = [row["prompt_transfer_gain"] for row in seeds]
        num_tasks = sum(len(row["tasks"]) for row in seeds)
        table.add_row(
            *map(shown, setting),
            f"{fmean(gains):+.1%}",
            f"{stdev(gains):.1%}" if len(gains) > 1 else "",
            f"{geometric_mean(row['joint_to_alone'] for row in seeds):.3f}",
            f"{sum(row['num_negative'] for row in seeds)} of {num_tasks}",
        )
    return table


def _order(value: Any) -> tuple[float, str]:
    """Sort numbers by size, also those that a text holds, then texts."""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), str(value)
