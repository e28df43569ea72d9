"""When a SuperNode waits for ever: Flower 1.41 does not notice that a ClientApp was killed at work, or a SuperExec."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from client.host_socket import ask_health
from deployment.supervision import Program

CLIENTAPP, SUPEREXEC = "flwr-clientapp", "flower-superexec"
RECEIVING, SENDING = b"Receiving: ", b"Sending: "  # what a SuperNode's log says of each message
# Between a message and the start of its ClientApp lies a poll of a second; after its end the reply follows at once.
SECONDS_WITHOUT_CLIENTAPP = 10.0
TAIL_BYTES = 1 << 16


def deafness(socket: Path, supernode: Program) -> Callable[[], Sequence[str]]:
    """Return what tells, look by look, whether a SuperNode, whose host listens at a socket, has become deaf."""
    seen: dict[int, int] = {}  # deserted messages, by the host's process
    life: _Life | None = None

    def look() -> Sequence[str]:
        nonlocal life
        deaf = False
        with contextlib.suppress(OSError):
            health = ask_health(socket)
            deaf = health["deserted"] > seen.get(health["pid"], 0)  # killed between its question and its end
            seen[health["pid"]] = health["deserted"]
        if supernode.process is not None:
            if life is None or life.pid != supernode.process.pid:
                life = _Life(supernode.process.pid, supernode.log)
            deaf = life.is_deaf() or deaf
        return (supernode.name,) if deaf else ()

    return look


class _Life:
    """What is known of a SuperNode's process."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log
        self._begin = log.stat().st_size if log.exists() else 0  # what an earlier one wrote is not its own
        self._had_superexec = False
        self._worked = time.monotonic()

    def is_deaf(self) -> bool:
        """Tell whether its SuperExec is gone, or nothing works on the message that it received."""
        started = list(_children(self.pid, SUPEREXEC))
        if self._had_superexec and not started:
            return True
        self._had_superexec = bool(started)
        works = any(True for superexec in started for _ in _children(superexec, CLIENTAPP))
        if works or not self._owes_a_reply():
            self._worked = time.monotonic()
        return time.monotonic() > self._worked + SECONDS_WITHOUT_CLIENTAPP

    def _owes_a_reply(self) -> bool:
        with contextlib.suppress(OSError), open(self._log, "rb") as log:
            log.seek(max(self._begin, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            written = log.read()
            return written.rfind(RECEIVING) > written.rfind(SENDING)
        return False


def _children(pid: int, program: str) -> Iterator[int]:
    """Yield the processes of a program that a process has started and that still run. Without /proc it finds none."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # ended meanwhile
            for child in children.read_text().split():
                if program.encode() in Path(f"/proc/{child}/cmdline").read_bytes():  # that of a zombie is empty
                    yield int(child)
