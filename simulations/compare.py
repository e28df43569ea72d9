"""Compare presets on equal terms: each at its best learning rate by the validation split, then on the test split.

    python -m simulations.compare mixture one-group --rates 0.02 0.04 0.08 --seeds 0 1 2 --output DIR

Runs that have a result in DIR are not run again, so an interrupted comparison goes on where it stopped.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from common.perplexity import geometric_mean
from server.run_directory import CONFIG, RESULT, VERSIONS
from simulations.settings import resolve
from simulations.simulate import read_result

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True)
class Run:
    """One simulation of a comparison."""

    preset: str
    rate: float
    seed: int
    split: str

    def directory(self, output: Path) -> Path:
        """Return where the run's results lie."""
        return output / f"{self.preset}-rate{self.rate:g}-seed{self.seed}-{self.split}"

    def start(self, output: Path, overrides: list[str]) -> None:
        """Run it in a process of its own, on one thread, unless it is there already."""
        directory = self.directory(output).resolve()
        words = [self.preset, *overrides, f"learning-rate={self.rate}", f"seed={self.seed}"]
        words += [f"eval-split={self.split}", f"run-directory={directory}"]
        if (directory / RESULT).is_file():
            if json.loads((directory / CONFIG).read_text()) != resolve(words):
                raise ValueError(f"{directory} holds a run with other settings: choose another --output or remove it")
            return
        subprocess.run(
            [sys.executable, "-m", "simulations.cli", "simulate", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        print(f"{directory.name}: perplexity {self.perplexity(output):.3f}", flush=True)

    def perplexity(self, output: Path) -> float:
        """Return the geometric mean over clients."""
        return float(read_result(self.directory(output))["perplexity"])


def compare(
    presets: list[str], rates: list[float], seeds: list[int], output: Path, overrides: list[str], num_processes: int
) -> dict[str, Any]:
    """Choose each preset's rate by its validation perplexity over all seeds; return the test figures at that rate."""
    for preset in presets:
        resolve([preset, *overrides])
    searched = [Run(preset, rate, seed, VALIDATION) for preset in presets for rate in rates for seed in seeds]
    _start_all(searched, output, overrides, num_processes)
    figures: dict[str, Any] = {}
    for preset in presets:
        by_rate = {
            rate: geometric_mean(Run(preset, rate, seed, VALIDATION).perplexity(output) for seed in seeds)
            for rate in rates
        }
        figures[preset] = {"validation_by_rate": by_rate, "rate": min(by_rate, key=lambda rate: by_rate[rate])}
    tested = {preset: [Run(preset, figures[preset]["rate"], seed, TEST) for seed in seeds] for preset in presets}
    _start_all([run for runs in tested.values() for run in runs], output, overrides, num_processes)
    for preset, runs in tested.items():
        results = [read_result(run.directory(output)) for run in runs]
        figures[preset] |= {
            "seeds": seeds,
            "backbone": [result["backbone_perplexity"] for result in results],
            "perplexity": [result["perplexity"] for result in results],
            "num_worse_clients": [
                sum(row.get("perplexity", math.inf) >= row["backbone_perplexity"] for row in result["clients"])
                for result in results
            ],
            "versions": json.loads((runs[0].directory(output) / VERSIONS).read_text()),
        }
    return figures


def _start_all(runs: list[Run], output: Path, overrides: list[str], num_processes: int) -> None:
    with ThreadPoolExecutor(num_processes) as pool:
        for _ in pool.map(lambda run: run.start(output, overrides), runs):
            pass


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
