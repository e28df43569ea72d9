"""How long it takes until something happens: processes from their start to their first use, against importing peft.

    python -m benchmarks.startup [--repeats 3] [--output DIR]

Every process is a fresh one; files are in the system's memory, as the first repeat is not counted. Takes about two
minutes and 1 GB of memory.
"""

import argparse
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import track

from benchmarks.report import publish
from client.host_socket import SOCKET, ask_health
from common.poll import poll
from simulations.benchmark_pages import startup as pages

FEDMOPS = str(Path(sysconfig.get_path("scripts")) / "fedmops")
LIMIT_SECONDS = 300.0
SMALLEST_RUN = ("num-clients=1", "num-rounds=1", "num-local-steps=1", "train-examples=1", "eval-examples=1")


def run_to_its_end(*words: str) -> Callable[[Path], None]:
    """Return what runs a command to its end, and raises CalledProcessError where that fails."""

    def run(directory: Path) -> None:
        subprocess.run(words, cwd=directory, check=True, capture_output=True, timeout=LIMIT_SECONDS)

    return run


def imports(module: str) -> Callable[[Path], None]:
    """Return what imports a module in a process of its own."""
    return run_to_its_end(sys.executable, "-c", f"import {module}")


def host_answers(directory: Path) -> None:
    """Start a node's host; return when it answers."""
    with subprocess.Popen([sys.executable, "-m", "client.host", str(directory)], stderr=subprocess.DEVNULL) as host:
        try:
            if not poll(lambda: _is_up(directory / SOCKET), LIMIT_SECONDS):
                raise RuntimeError(f"the host did not answer within {LIMIT_SECONDS:.0f} s")
        finally:
            host.kill()


def _is_up(socket: Path) -> bool:
    try:
        ask_health(socket)
    except OSError:
        return False
    return True


STARTS: dict[str, Callable[[Path], None]] = {
    pages.PEER: imports("peft"),
    "fedmops --help": run_to_its_end(FEDMOPS, "--help"),
    "fedmops simulate, one client, one step, to its end": run_to_its_end(FEDMOPS, "simulate", *SMALLEST_RUN),
    "node: the host, until it answers": host_answers,
    "node: the ClientApp of a message, imported": imports("client.app"),
    "server: the ServerApp, imported": imports("server.app"),
}


def main() -> None:
    """Read the command line, measure in turns, print a table; write it and its JSON to a directory, if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    turns = [(repeat, name) for repeat in range(arguments.repeats + 1) for name in STARTS]
    for repeat, name in track(turns, description="starting"):
        with TemporaryDirectory() as directory:
            started = time.perf_counter()
            STARTS[name](Path(directory))
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    rows: list[dict[str, Any]] = [
        {"start": name, "seconds": taken, "median": median(taken)} for name, taken in seconds.items()
    ]
    publish("startup", pages, "Until something happens", {"rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
