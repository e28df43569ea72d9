"""Compare presets on equal terms: each at its best learning rate by the validation split, then on the test split.

    python -m simulations.compare mixture one-group --rates 0.02 0.04 0.08 --seeds 0 1 2 --output DIR

Runs that have a result in DIR are not run again, so an interrupted comparison goes on where it stopped.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import stdev
from typing import Any

from common.perplexity import geometric_mean
from server.run_directory import VERSIONS
from simulations.figures import num_worse_clients
from simulations.runs import Run, run_all, sole_use
from simulations.settings import resolve
from simulations.simulate import read_result

VALIDATION, TEST = "validation", "test"


def compare(
    presets: list[str], rates: list[float], seeds: list[int], output: Path, overrides: list[str], num_processes: int
) -> dict[str, Any]:
    """Choose each preset's rate by its validation perplexity over all seeds; return the test figures at that rate."""
    for preset in presets:
        resolve([preset, *overrides])

    def run(preset: str, rate: float, seed: int, split: str) -> Run:
        words = (preset, *overrides, f"learning-rate={rate}", f"seed={seed}", f"eval-split={split}")
        return Run(words, output / f"{preset}-rate{rate:g}-seed{seed}-{split}")

    searched = [run(preset, rate, seed, VALIDATION) for preset in presets for rate in rates for seed in seeds]
    _run_all(searched, output, num_processes)
    figures: dict[str, Any] = {}
    for preset in presets:
        by_rate = {
            rate: geometric_mean(_perplexity(run(preset, rate, seed, VALIDATION)) for seed in seeds) for rate in rates
        }
        figures[preset] = {"validation_by_rate": by_rate, "rate": min(by_rate, key=lambda rate: by_rate[rate])}
    tested = {preset: [run(preset, figures[preset]["rate"], seed, TEST) for seed in seeds] for preset in presets}
    _run_all([run for runs in tested.values() for run in runs], output, num_processes)
    for preset, runs in tested.items():
        results = [read_result(run.directory) for run in runs]
        figures[preset] |= {
            "seeds": seeds,
            "backbone": [result["backbone_perplexity"] for result in results],
            "perplexity": [result["perplexity"] for result in results],
            "num_worse_clients": [num_worse_clients(result) for result in results],
            "versions": json.loads((runs[0].directory / VERSIONS).read_text()),
        }
    return figures


def _run_all(runs: list[Run], output: Path, num_processes: int) -> None:
    failures = []

    def ended(run: Run, failure: str | None) -> None:
        if failure:
            failures.append(f"{run.directory.name} failed: {failure}")
        else:
            print(f"{run.directory.name}: perplexity {_perplexity(run):.3f}", flush=True)

    with sole_use(output):
        run_all(runs, num_processes, ended)
    if failures:
        raise RuntimeError("; ".join(failures))


def _perplexity(run: Run) -> float:
    return float(read_result(run.directory)["perplexity"])


def markdown(figures: dict[str, Any]) -> str:
    """Write the figures as a table: test perplexity, geometric mean over clients, by seed."""
    first = next(iter(figures.values()))
    seeds = first["seeds"]
    lines = [
        f"| preset | learning rate | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | s.d. | to first |",
        f"|---|---|{'---|' * len(seeds)}---|---|---|",
        _row("backbone alone", "", first["backbone"], first["perplexity"]),
    ]
    lines += [
        _row(preset, f"{row['rate']:g}", row["perplexity"], first["perplexity"]) for preset, row in figures.items()
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, rate: str, values: list[float], reference: list[float]) -> str:
    mean = geometric_mean(values)
    spread = f"{stdev(values):.3f}" if len(values) > 1 else ""
    cells = [name, rate, *(f"{value:.3f}" for value in values), f"{mean:.3f}", spread]
    return f"| {' | '.join(cells)} | {mean / geometric_mean(reference) - 1:+.0%} |"


def main() -> None:
    """Read the command line, compare, print the table and leave it in the output directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides for all runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    figures = compare(
        arguments.presets, arguments.rates, arguments.seeds, arguments.output, arguments.set, arguments.processes
    )
    table = markdown(figures)
    (arguments.output / "comparison.json").write_text(json.dumps(figures, indent=2) + "\n")
    (arguments.output / "comparison.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
