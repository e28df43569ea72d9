"""A sweep: how far a run's perplexity depends on some of its settings."""

import shlex
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from rich.console import Console

from simulations.grid import points, portable, read_axes, read_seeds
from simulations.runs import sole_use
from simulations.runs_view import run_and_show
from simulations.sweep_table import TABLE, Sweep, why_no_plot, write

RUNS = "runs"


class EvalSplit(StrEnum):
    """Where a sweep evaluates; settings are chosen by the validation split."""

    VALIDATION = "validation"
    TEST = "test"


def sweep(
    words: Sequence[str],
    over: Sequence[str],
    seeds: str,
    split: EvalSplit,
    output: Path,
    num_processes: int,
    console: Console,
) -> int:
    """Run every combination of the swept keys with every seed; print the table; return how many runs failed.

    Raises ValueError for bad input, before anything runs or is written.
    """
    axes = read_axes(over, words)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a directory, new or an earlier sweep's, got {output}")
    with console.status("checking all combinations"):
        swept = points(words, axes, read_seeds(seeds), split, output / RUNS)
    runs = [point.run for point in swept]
    for run in runs:
        run.is_done()  # raises where it was another run
    options = [word for text in over for word in ("--over", text)]
    options += ["--seeds", seeds, "--split", split, "--output", str(output), "--processes", str(num_processes)]
    command = shlex.join(["fedmops", "sweep", *(portable(word) for word in [*words, *options])])
    report = Sweep(command, split, [axis.key for axis in axes], swept)
    started = time.monotonic()
    with sole_use(output):
        write(report, output)
        num_failed = run_and_show(runs, num_processes, console, lambda run, failure: write(report, output))
        table = write(report, output)
    console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)
    if has_no_plot := why_no_plot(report.keys):
        console.print(has_no_plot)
    if num_failed:
        console.print(f"{num_failed} of {len(swept)} runs failed: the same command tries them again", style="yellow")
    console.print(f"{time.monotonic() - started:.0f} s; the table is in {output / TABLE}", soft_wrap=True)
    return num_failed
