"""Programs that are started again when they end, until we are told to end."""

import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.flower_processes import Processes, last_line

POLL_SECONDS = 0.5
# What ends at once, as a host with a wrong setting does, must not keep the machine busy.
RESTART_SECONDS = 3.0

Tell = Callable[[str], None]


@dataclass
class Program:
    """A program, what it is called with, and the process that runs it."""

    name: str
    command: str
    arguments: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = field(default=0.0)

    def start(self, processes: Processes) -> "subprocess.Popen[bytes]":
        """Start the program; return its process."""
        self.process = processes.start(self.command, self.arguments, self.log)
        return self.process


def look_after(
    processes: Processes, programs: Sequence[Program], tell: Tell, deaf: Callable[[], Collection[str]] = tuple
) -> None:
    """Start again what ended, and what `deaf` names; return at an interruption only."""
    while True:
        hears_nothing = deaf()
        for program in programs:
            process = program.process
            if process is None:
                if time.monotonic() >= program.restart_at:
                    program.start(processes)
                continue
            if process.poll() is not None:
                tell(f"{program.name} ended with exit code {process.returncode}: {last_line(program.log)}")
            elif program.name in hears_nothing:
                tell(f"{program.name} hears nothing any more")
            else:
                continue
            processes.end(process)  # and what it started
            program.process, program.restart_at = None, time.monotonic() + RESTART_SECONDS
            tell(f"{program.name} starts again in {RESTART_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
