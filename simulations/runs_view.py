"""The live view of many runs: a line for each that ended, and a progress line."""

from collections.abc import Callable, Sequence

from rich.console import Console

from simulations.runs import Run, run_all
from simulations.simulate import read_result
from simulations.view import progress_of_runs


def run_and_show(
    runs: Sequence[Run], num_processes: int, console: Console, ended: Callable[[Run, str | None], object]
) -> int:
    """Run what is not done and tell of each; return how many runs failed.

    Calls `ended` after each, as `run_all` does. An interruption says that the same command goes on from there.
    """
    num_ended = num_done = sum(run.is_done() for run in runs)
    num_failed = 0
    progress = progress_of_runs(console)
    bar = progress.add_task("", total=len(runs))

    def show_progress() -> None:
        running = min(num_processes, len(runs) - num_ended)
        failed = f", {num_failed} failed" if num_failed else ""
        described = f"{num_ended - num_failed} of {len(runs)} runs done, {running} running{failed}"
        progress.update(bar, description=described, completed=num_ended)

    def tell(run: Run, failure: str | None) -> None:
        nonlocal num_ended, num_failed
        num_ended += 1
        num_failed += failure is not None
        ended(run, failure)
        said = f"failed: {failure}" if failure else f"perplexity {read_result(run.directory)['perplexity']:.3f}"
        style = "yellow" if failure else ""
        console.print(f"{run.directory.name}: {said}", style=style, markup=False, highlight=False, soft_wrap=True)
        show_progress()

    there = f", {num_done} of them are there already" if num_done else ""
    console.print(f"{len(runs)} runs, {num_processes} at a time{there}", highlight=False)
    show_progress()
    try:
        with progress:
            run_all(runs, num_processes, tell)
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on from here")
        raise
    return num_failed
