"""Compare methods on equal terms: each at its best learning rate by the validation split, then on the test split."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from simulations.comparison import SUMMARY, Method, read_comparison
from simulations.comparison_report import DOCUMENT, describe, write
from simulations.comparison_runs import TEST, VALIDATION, Plan
from simulations.comparison_table import IN_SHORT, sections
from simulations.grid import portable, read_seeds, shown
from simulations.runs import Run, sole_use
from simulations.runs_view import run_and_show

# A run, and the one that it starts from.
Job = tuple[Run, Run | None]


def compare(
    words: Sequence[str], seeds: str, names: str | None, output: Path, num_processes: int, console: Console
) -> int:
    """Search every method's rate, run all methods with all seeds, print the tables; return how many results lack.

    Raises ValueError for bad input, before anything runs or is written.
    """
    comparison = read_comparison(words, names)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a directory, new or an earlier comparison's, got {output}")
    plan = Plan(comparison, read_seeds(seeds), output)
    with console.status("checking all methods"):
        plan.check()
    options = ["--seeds", seeds, *(["--methods", names] if names else [])]
    options += ["--output", str(output), "--processes", str(num_processes)]
    command = shlex.join(["fedmops", "compare", *(portable(word) for word in [*words, *options])])
    started = time.monotonic()
    with sole_use(output):
        plan.write_shared()
        search = [
            _job(plan, method, rate, seed, VALIDATION)
            for method in plan.searches()
            for rate in method.rates
            for seed in comparison.search_seeds
        ]
        if search:
            console.print("search of the learning rates, on the validation split: ", end="")
            _run_jobs(plan, search, command, num_processes, console)
        compared = [comparison.methods[name] for name in comparison.compared]
        ready = []
        for method in compared:
            searched = plan.searched(comparison.searching(method))
            _tell_choice(method, searched, console)
            if not searched or searched["chosen"] is not None:
                ready.append((method, searched.get("chosen")))
        # Seed by seed: what is stopped has all methods with some seeds, not some methods with all.
        tests = [_job(plan, method, rate, seed, TEST) for seed in plan.seeds for method, rate in ready]
        console.print("comparison, on the test split: ", end="")
        _run_jobs(plan, tests, command, num_processes, console)
        report = describe(plan, command)
        write(report, output, with_plots=True)
    for name, section in sections(report).items():
        if name.endswith(IN_SHORT) or name == SUMMARY:
            console.print(f"\n{name}:\n\n{section.strip()}", markup=False, highlight=False, soft_wrap=True)
    num_missing = len(compared) * len(plan.seeds) - sum(run.is_done() for run, _ in tests)
    if num_missing:
        console.print(f"{num_missing} results lack: the same command tries them again", style="yellow")
    console.print(f"\n{time.monotonic() - started:.0f} s; tables and plots are in {output / DOCUMENT}", soft_wrap=True)
    return num_missing


def _job(plan: Plan, method: Method, rate: float | None, seed: int, split: str) -> Job:
    return plan.run(method, rate, seed, split), plan.source(method, rate, seed)


def _run_jobs(plan: Plan, jobs: Sequence[Job], command: str, num_processes: int, console: Console) -> None:
    """Run all sources, then all whose source has a result; keep why others have none, and what is known so far."""

    def ended(run: Run, failure: str | None) -> None:
        if failure is not None:
            plan.failed[run.directory.name] = portable_reason(failure)
        write(describe(plan, command), plan.output, with_plots=False)

    sources = [source for run, source in jobs if source is not None and not run.is_done()]
    if sources:
        console.print("sources first: ", end="")
        run_and_show(sources, num_processes, console, ended)
    ready = []
    for run, source in jobs:
        if source is None or source.is_done() or run.is_done():
            ready.append(run)
        else:
            reason = plan.failed[source.directory.name]
            plan.failed[run.directory.name] = f"{source.directory.name} failed: {reason}"
    run_and_show(ready, num_processes, console, ended)


def portable_reason(reason: str) -> str:
    """Return a reason without this machine's paths."""
    return " ".join(portable(word) for word in reason.split(" "))


def _tell_choice(method: Method, searched: dict[str, Any], console: Console) -> None:
    if not searched:
        return
    if searched["chosen"] is None:
        console.print(f"{method.name}: no rate has a result", style="yellow", highlight=False)
        return
    edge = ", the end of its rates: a better one may lie beyond" if searched["at_edge"] else ""
    console.print(f"{method.name}: learning rate {shown(searched['chosen'])}{edge}", highlight=False, soft_wrap=True)
