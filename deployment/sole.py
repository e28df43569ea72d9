"""A part of a deployment for one process alone: what an earlier one that was killed left running is ended first."""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from common.flower_processes import STOP_SECONDS
from common.poll import poll
from deployment.supervision import Tell

LOCK = "lock"


@contextlib.contextmanager
def sole(part: Path, tell: Tell) -> Iterator[None]:
    """Hold a part. Raises RuntimeError where another process holds it."""
    with open(part / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process, however it ends
        except BlockingIOError:
            raise RuntimeError(f"another `fedmops deploy` runs from {part}: one is enough, end it first") from None
        if found := left_in(part):
            tell(f"ending {len(found)} processes that an earlier start left")
            for number in (signal.SIGTERM, signal.SIGKILL):
                for pid in left_in(part):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                if poll(lambda: not left_in(part), STOP_SECONDS):
                    break
        yield


def left_in(part: Path) -> list[int]:
    """Return the processes that have a part as Flower's home, as all that ours start. Without /proc it finds none."""
    wanted, found = f"FLWR_HOME={part}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found
