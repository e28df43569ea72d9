"""Processes that stand for runs."""

import json
import subprocess
import sys
from pathlib import Path

from simulations.runs import Run
from simulations.settings import resolve

# Settings whose partitions are made at once.
SMALL = ["train-examples=4", "eval-examples=2", "num-clients=2"]


class FakeRuns:
    """Has fake_run.py stand for each run, with code of a test's choice by the directory's name."""

    def __init__(self) -> None:
        self.code: dict[str, str] = {}
        self.always = ""  # for those without code of their own
        self.started: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def command(self, run: Run) -> list[str]:
        """Return what starts the fake."""
        self.started.append(run.directory.name)
        settings = resolve(run.all_words())
        code = self.code.get(run.directory.name, self.always)
        program = str(Path(__file__).with_name("fake_run.py"))
        return [sys.executable, "-I", "-S", program, str(run.directory), json.dumps(settings), code]
