"""What a sweep leaves: sweep.json with a row for each run, sweep.md with a line for each setting, sweep.png."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic_file import replace_file, replace_json
from common.config import Value
from common.perplexity import geometric_mean
from simulations import markdown
from simulations.figures import run_figures
from simulations.grid import Point, shown
from simulations.markdown import mean, spread
from simulations.provenance import head, provenance

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
    if plotted := _plotted(report):
        from simulations.plot import draw  # matplotlib takes a second to import

        measured = [([row["settings"][key] for key in sweep.keys], row["perplexity"]) for row in plotted]
        replace_file(output / PLOT, draw(sweep.keys, measured, f"perplexity ({sweep.split} split)"))
    else:
        (output / PLOT).unlink(missing_ok=True)
    replace_json(output / JSON, report)
    replace_file(output / TABLE, document(report).encode())
    return lines


def describe(sweep: Sweep) -> dict[str, Any]:
    """Return what is known of a sweep: where it ran, and a row for each run; one without a result has no figures."""
    rows = []
    done = [point.run.is_done() for point in sweep.points]
    for point, is_done in zip(sweep.points, done, strict=True):
        row: Row = {"settings": point.settings, "seed": point.seed}
        rows.append(row | run_figures(point.run.directory) if is_done else row)
    return {
        "command": sweep.command,
        # Runs of several versions are told apart in their directories; here they are named together.
        **provenance(point.run.directory for point, is_done in zip(sweep.points, done, strict=True) if is_done),
        "split": sweep.split,
        "axes": {key: list(dict.fromkeys(point.settings[key] for point in sweep.points)) for key in sweep.keys},
        "runs": rows,
    }


def table(report: dict[str, Any]) -> str:
    """Write a line for each setting: its perplexity over the seeds, and what it costs."""
    names = [*report["axes"], "perplexity", "s.d.", "range", "seeds", "backbone"]
    names += ["gate entropy", "information", "least use", "parameters", "kB down + up"]
    by_setting: dict[tuple[Value, ...], list[Row]] = {}
    for row in report["runs"]:
        by_setting.setdefault(tuple(row["settings"].values()), []).append(row)
    return markdown.table(names, [[*map(shown, setting), *_cells(rows)] for setting, rows in by_setting.items()])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Write what documents may show: the table, and where several keys are swept, the perplexity across each."""
    keys = list(report["axes"]) if len(report["axes"]) > 1 else []
    return {"table": table(report)} | {f"across {key}": _across(report, key) for key in keys}


def _across(report: dict[str, Any], key: str) -> str:
    """Write perplexities with a column for each value of a key, and how far the first value's is from the last's."""
    values = list(report["axes"][key])
    others = [other for other in report["axes"] if other != key]
    found: dict[tuple[Value, ...], dict[Value, list[float]]] = {}
    for row in report["runs"]:
        by_value = found.setdefault(tuple(row["settings"][other] for other in others), {})
        by_value.setdefault(row["settings"][key], []).extend([row["perplexity"]] if "perplexity" in row else [])
    lines = []
    for setting, by_value in found.items():
        means = [geometric_mean(ran) if (ran := by_value[value]) else None for value in values]
        first, last = means[0], means[-1]
        change = "" if first is None or last is None else f"{first / last - 1:+.1%}"
        seeds = "/".join(dict.fromkeys(str(len(ran)) for ran in by_value.values()))
        cells = ["no result" if mean is None else f"{mean:.3f}" for mean in means]
        lines.append([*map(shown, setting), *cells, change, seeds])
    heads = [f"{key}={shown(value)}" for value in values]
    return markdown.table([*others, *heads, "first against last", "seeds"], lines)


def _cells(rows: list[Row]) -> list[str]:
    done = [row for row in rows if "perplexity" in row]
    seeds = str(len(done)) if len(done) == len(rows) else f"{len(done)} of {len(rows)}"
    if not done:
        return ["no result", "", "", seeds, "", "", "", "", "", ""]
    return [
        *spread([row["perplexity"] for row in done]),
        seeds,
        f"{geometric_mean(row['backbone_perplexity'] for row in done):.3f}",
        mean(done, "gate_entropy", lambda entropy: f"{entropy:.3f}"),
        mean(done, "task_expert_information", lambda information: f"{information:.3f}"),
        mean(done, "smallest_expert_use", lambda use: f"{use:.1%}"),
        mean(done, "num_parameters", lambda count: f"{count:,.0f}"),
        markdown.traffic(done),
    ]


def document(report: dict[str, Any]) -> str:
    """Write all that sweep.md says, from sweep.json."""
    done = sum("perplexity" in row for row in report["runs"])
    parts = [
        *head(
            f"Perplexity by {', '.join(report['axes'])}",
            report,
            f"{done} of {len(report['runs'])} runs have a result.",
        ),
        f"Perplexity of the {report['split']} split, geometric mean over clients; then over seeds: geometric mean, "
        "standard deviation, smallest to largest. Of the last round: the gate's entropy (nats), the mutual information "
        "of task and expert (nats), the share of the expert that is used least. Bytes are those of a client and round.",
        table(report).strip(),
    ]
    if _plotted(report):
        parts.append(f"![Perplexity by {', '.join(report['axes'])}]({PLOT})")
    elif reason := why_no_plot(list(report["axes"])):
        parts.append(reason)
    return "\n\n".join(parts) + "\n"


def _plotted(report: dict[str, Any]) -> list[Row]:
    """Return the rows that the plot shows."""
    finite = [row for row in report["runs"] if math.isfinite(row.get("perplexity", math.inf))]
    return [] if why_no_plot(list(report["axes"])) else finite


def why_no_plot(keys: Sequence[str]) -> str | None:
    """Say why these keys have no plot, if so."""
    return f"no plot: {len(keys)} keys are swept, it shows one or two" if len(keys) > MAX_PLOTTED_AXES else None
