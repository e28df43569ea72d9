"""What a sweep leaves: sweep.json with a row for each run, sweep.md with a line for each setting, sweep.png."""

import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common.atomic_file import replace_file, replace_json
from common.config import Value
from common.perplexity import geometric_mean
from server.run_directory import VERSIONS
from simulations.figures import run_figures
from simulations.grid import Point, shown

JSON, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.png"
MAX_PLOTTED_AXES = 2

Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What is swept: the command without paths of this machine, the split to evaluate on, keys and runs."""

    command: str
    split: str
    keys: Sequence[str]
    points: Sequence[Point]


def write(sweep: Sweep, output: Path) -> str:
    """Write all that can be said so far; return the table. A reader sees old or new files, never a part of one."""
    report = describe(sweep)
    lines = table(report)
    plotted = [row for row in report["runs"] if math.isfinite(row.get("perplexity", math.inf))]
    has_plot = bool(plotted) and not why_no_plot(sweep.keys)
    if has_plot:
        from simulations.plot import draw  # matplotlib takes a second to import

        measured = [([row["settings"][key] for key in sweep.keys], row["perplexity"]) for row in plotted]
        replace_file(output / PLOT, draw(sweep.keys, measured, f"perplexity ({sweep.split} split)"))
    else:
        (output / PLOT).unlink(missing_ok=True)
    replace_json(output / JSON, report)
    replace_file(output / TABLE, _document(report, lines, has_plot).encode())
    return lines


def describe(sweep: Sweep) -> dict[str, Any]:
    """Return what is known of a sweep: where it ran, and a row for each run; one without a result has no figures."""
    rows, versions = [], []
    for point in sweep.points:
        row: Row = {"settings": point.settings, "seed": point.seed}
        if point.run.is_done():
            row |= run_figures(point.run.directory)
            versions.append(json.loads((point.run.directory / VERSIONS).read_text()))
        rows.append(row)
    # Runs of several versions are told apart in their directories; here they are named together.
    named = {name: ", ".join(dict.fromkeys(each[name] for each in versions)) for name in (versions or [{}])[0]}
    return {
        "command": sweep.command,
        "commit": named.pop("commit", None),
        "versions": named,
        "machine": {"processor": _processor(), "num_cores": os.cpu_count()},
        "split": sweep.split,
        "axes": {key: list(dict.fromkeys(point.settings[key] for point in sweep.points)) for key in sweep.keys},
        "runs": rows,
    }


def table(report: dict[str, Any]) -> str:
    """Write a line for each setting: its perplexity over the seeds, and what it costs."""
    keys = list(report["axes"])
    names = [*keys, "perplexity", "s.d.", "range", "seeds", "backbone"]
    names += ["gate entropy", "information", "least use", "parameters", "kB down + up"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    by_setting: dict[tuple[Value, ...], list[Row]] = {}
    for row in report["runs"]:
        by_setting.setdefault(tuple(row["settings"].values()), []).append(row)
    for setting, rows in by_setting.items():
        cells = [*(shown(value).replace("|", r"\|") for value in setting), *_cells(rows)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(rows: list[Row]) -> list[str]:
    done = [row for row in rows if "perplexity" in row]
    seeds = str(len(done)) if len(done) == len(rows) else f"{len(done)} of {len(rows)}"
    if not done:
        return ["no result", "", "", seeds, "", "", "", "", "", ""]
    values = [row["perplexity"] for row in done]
    down, up = (f"bytes_{way}_per_client_and_round" for way in ("down", "up"))
    return [
        f"{geometric_mean(values):.3f}",
        f"{stdev(values):.3f}" if len(values) > 1 and math.isfinite(max(values)) else "",
        f"{min(values):.3f} to {max(values):.3f}",
        seeds,
        f"{geometric_mean(row['backbone_perplexity'] for row in done):.3f}",
        _mean(done, "gate_entropy", lambda entropy: f"{entropy:.3f}"),
        _mean(done, "task_expert_information", lambda information: f"{information:.3f}"),
        _mean(done, "smallest_expert_use", lambda use: f"{use:.1%}"),
        _mean(done, "num_parameters", lambda count: f"{count:,.0f}"),
        f"{_mean(done, down, _kilobytes)} + {_mean(done, up, _kilobytes)}",
    ]


def _mean(rows: list[Row], name: str, written: Callable[[float], str]) -> str:
    values = [row[name] for row in rows if name in row]
    return written(fmean(values)) if values else ""


def _kilobytes(count: float) -> str:
    return f"{count / 1e3:.1f}"


def _document(report: dict[str, Any], lines: str, has_plot: bool) -> str:
    done = sum("perplexity" in row for row in report["runs"])
    machine = report["machine"]
    parts = [
        f"# Perplexity by {', '.join(report['axes'])}",
        f"```\n{report['command']}\n```",
        f"Commit {report['commit'] or 'unknown'}, {machine['processor']}, {machine['num_cores']} cores. "
        f"{done} of {len(report['runs'])} runs have a result.",
        f"Perplexity of the {report['split']} split, geometric mean over clients; then over seeds: geometric mean, "
        "standard deviation, smallest to largest. Of the last round: the gate's entropy (nats), the mutual information "
        "of task and expert (nats), the share of the expert that is used least. Bytes are those of a client and round.",
        lines.strip(),
    ]
    if has_plot:
        parts.append(f"![Perplexity by {', '.join(report['axes'])}]({PLOT})")
    elif reason := why_no_plot(list(report["axes"])):
        parts.append(reason)
    return "\n\n".join(parts) + "\n"


def why_no_plot(keys: Sequence[str]) -> str | None:
    """Say why these keys have no plot, if so."""
    return f"no plot: {len(keys)} keys are swept, it shows one or two" if len(keys) > MAX_PLOTTED_AXES else None


def _processor() -> str:
    """Return the processor's name, as Linux says it or as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
