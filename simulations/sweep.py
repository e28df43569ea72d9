"""A sweep: how far a run's perplexity depends on some of its settings."""

import shlex
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from rich.console import Console

from simulations.grid import points, portable, read_axes, read_seeds
from simulations.runs import Run, run_all, sole_use
from simulations.simulate import read_result
from simulations.sweep_table import TABLE, Sweep, why_no_plot, write
from simulations.view import progress_of_runs

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
    num_done = sum(point.run.is_done() for point in swept)
    options = [word for text in over for word in ("--over", text)]
    options += ["--seeds", seeds, "--split", split, "--output", str(output), "--processes", str(num_processes)]
    command = shlex.join(["fedmops", "sweep", *(portable(word) for word in [*words, *options])])
    report = Sweep(command, split, [axis.key for axis in axes], swept)
    started = time.monotonic()
    with sole_use(output):
        write(report, output)
        there = f", {num_done} of them are there already" if num_done else ""
        console.print(f"{len(swept)} runs, {num_processes} at a time{there}", highlight=False)
        try:
            num_failed = _run(report, num_done, num_processes, output, console)
        except KeyboardInterrupt:
            console.print("stopped: the same command goes on from here")
            raise
        table = write(report, output)
    console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)
    if has_no_plot := why_no_plot(report.keys):
        console.print(has_no_plot)
    if num_failed:
        console.print(f"{num_failed} of {len(swept)} runs failed: the same command tries them again", style="yellow")
    console.print(f"{time.monotonic() - started:.0f} s; the table is in {output / TABLE}", soft_wrap=True)
    return num_failed


def _run(report: Sweep, num_ended: int, num_processes: int, output: Path, console: Console) -> int:
    """Run what is not done, with a line for each run and a progress line; return how many runs failed."""
    runs = [point.run for point in report.points]
    num_failed = 0
    progress = progress_of_runs(console)
    bar = progress.add_task("", total=len(runs))

    def show_progress() -> None:
        running = min(num_processes, len(runs) - num_ended)
        failed = f", {num_failed} failed" if num_failed else ""
        described = f"{num_ended - num_failed} of {len(runs)} runs done, {running} running{failed}"
        progress.update(bar, description=described, completed=num_ended)

    def ended(run: Run, failure: str | None) -> None:
        nonlocal num_ended, num_failed
        num_ended += 1
        num_failed += failure is not None
        write(report, output)
        said = f"failed: {failure}" if failure else f"perplexity {read_result(run.directory)['perplexity']:.3f}"
        style = "yellow" if failure else ""
        console.print(f"{run.directory.name}: {said}", style=style, markup=False, highlight=False, soft_wrap=True)
        show_progress()

    show_progress()
    with progress:
        run_all(runs, num_processes, ended)
    return num_failed
