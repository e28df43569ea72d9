"""The live view of a run: it reads the run directory as it grows, whatever engine fills it."""

import json
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common.wire.preparation import PREPARE
from server.run_directory import METRICS, ROUNDS

POLL_SECONDS = 0.2
STEPS = {
    "backbone": "evaluating the backbone alone",
    "train": "training",
    "mixture": "evaluating",
    "personal": "evaluating what each client made of it for itself",
}


def progress_of_runs(console: Console) -> Progress:
    """Return a line that says what is being done, how much of it is done and for how long, and goes at the end."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


class Tail:
    """Reads the new lines of a file that may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the lines that came since the last call, as far as they are whole."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


class RunView:
    """Shows, in a thread of its own, which clients have answered and a line for each round."""

    def __init__(
        self, console: Console, directory: Path, num_rounds: int, num_clients: int, centralised: bool = False
    ) -> None:
        self._console = console
        self._metrics, self._rounds = Tail(directory / METRICS), Tail(directory / ROUNDS)
        self._num_rounds, self._num_clients, self._centralised = num_rounds, num_clients, centralised
        self._answered: dict[tuple[int, str], set[int]] = defaultdict(set)
        self._progress = progress_of_runs(console)
        self._bar = self._progress.add_task("loading the backbone and the data", total=None)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="run-view", daemon=True)

    def __enter__(self) -> "RunView":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._progress.stop()

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._update()
        self._update()

    def _update(self) -> None:
        for line in self._metrics.new_lines():
            step = (line["round"], line["phase"])
            self._answered[step].add(line["client"])
            self._show_step(*step)
        for line in self._rounds.new_lines():
            self._show_round(line)

    def _show_step(self, server_round: int, phase: str) -> None:
        count = len(self._answered[server_round, phase])
        where = f"round {server_round} of {self._num_rounds}: " if 0 < server_round <= self._num_rounds else ""
        self._progress.update(
            self._bar,
            description=f"{where}{STEPS[phase]}, {count} of {self._num_clients} clients",
            completed=count,
            total=self._num_clients,
        )

    def _show_round(self, line: dict[str, Any]) -> None:
        traffic = f"{line['bytes_down'] / 1e6:.2f} MB down, {line['bytes_up'] / 1e6:.2f} MB up, {line['seconds']:.1f} s"
        if line["round"] == 0:
            said = f"backbone alone: perplexity {line['perplexity']:.3f}, {line['num_clients_evaluated']} clients"
        else:
            counted = "num_clients_trained" if "loss" in line else "num_clients_evaluated"
            said = (
                f"round {line['round']} of {self._num_rounds}: "
                + (f"loss {line['loss']:.3f}, " if "loss" in line else "")
                + f"perplexity {line['perplexity']:.3f}, "
                + ("one trainer" if self._centralised else f"{line[counted]} clients")
            )
        self._console.print(f"{said}, {traffic}", soft_wrap=True)
        for step, failures in line["failed"].items():
            for client, reason in failures.items():
                who = "node" if step == PREPARE else "client"
                self._console.print(
                    f"  {who} {client} failed to {step}: {reason}", style="yellow", markup=False, soft_wrap=True
                )
