"""Runs in processes of their own: many at a time, a finished one never again, none left behind."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.config import CHANGE_NO_RESULT
from common.saved_run import CONFIG
from server.run_directory import RESULT
from simulations.settings import resolve

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 10.0
LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """One simulation: the words that `fedmops simulate` takes, and where its results lie.

    With a `source` its first prompts are those of another run, which must have ended before.
    """

    words: tuple[str, ...]
    directory: Path
    source: Path | None = None

    def all_words(self) -> list[str]:
        """Return the words with the paths of this machine."""
        init = [f"prompt-init={self.source.resolve()}"] if self.source else []
        return [*self.words, *init, f"run-directory={self.directory.resolve()}"]

    def command(self) -> list[str]:
        """Return what starts it."""
        return [sys.executable, "-m", "simulations.cli", "simulate", *self.all_words()]

    def is_done(self) -> bool:
        """Tell whether its result is there. Raises ValueError when that is the result of other settings."""
        if not (self.directory / RESULT).is_file():
            return False
        # A key that an earlier version had not yet stands for what is its default now.
        found = resolve([]) | json.loads((self.directory / CONFIG).read_text())
        expected = resolve(self.all_words())
        # Results may have been moved: where they lie, and with them a source, is no difference.
        for key in ("run-directory", *CHANGE_NO_RESULT):
            found[key] = expected[key]
        if self.source and Path(found["prompt-init"]).name == self.source.name:
            found["prompt-init"] = expected["prompt-init"]
        if found != expected:
            raise ValueError(f"{self.directory} holds a run with other settings: choose another --output or remove it")
        return True


@contextmanager
def sole_use(output: Path) -> Iterator[None]:
    """Create a directory and keep other processes from it: two would take each other's runs for interrupted ones.

    Raises ValueError when another process uses it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process writes its runs to {output}: wait for its end or choose another --output"
            ) from None
        yield


def run_all(runs: Sequence[Run], num_processes: int, ended: Callable[[Run, str | None], None]) -> None:
    """Run what is not done yet, at most `num_processes` at a time and each on one thread.

    Calls `ended` after each with None, or with the reason when it left no result. What an interruption left of a run is
    removed before it starts again. However this function ends, no process outlives it.
    """
    waiting = deque(run for run in dict.fromkeys(runs) if not run.is_done())
    running: dict[Run, subprocess.Popen[bytes]] = {}
    with tempfile.TemporaryDirectory() as errors:
        try:
            while waiting or running:
                while waiting and len(running) < num_processes:
                    run = waiting.popleft()
                    running[run] = _start(run, Path(errors) / run.directory.name)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    process = running.pop(run)
                    done = (run.directory / RESULT).is_file()
                    ended(run, None if done else _reason(process, Path(errors) / run.directory.name))
                if running:
                    time.sleep(POLL_SECONDS)
        finally:
            _end(list(running.values()))


def _start(run: Run, errors: Path) -> subprocess.Popen[bytes]:
    if (run.directory / CONFIG).is_file():
        shutil.rmtree(run.directory)
    with open(errors, "wb") as file:  # not a pipe, which fills up when nobody reads it
        return subprocess.Popen(
            run.command(),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def _reason(process: subprocess.Popen[bytes], errors: Path) -> str:
    """Return the last line that a failed run said of errors."""
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("failed: ")
        if lines
        else f"it ended with exit code {process.returncode} and said nothing"
    )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes politely, so that they tear down what they started; kill those that do not listen."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        with suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # a second Ctrl-C ends the patience
        for process in processes:
            process.kill()
            process.wait()
