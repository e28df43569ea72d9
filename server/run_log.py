"""A run's log file, which is also the sign that a process writes in the run's directory."""

import fcntl
import logging
from pathlib import Path

from common.poll import poll


class RunLog(logging.FileHandler):
    """Writes lines with their time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def hold(self, limit_seconds: float) -> None:
        """Hold the directory for this process alone. Raises ValueError where another one does not let go in time."""
        if not poll(self._holds, limit_seconds):
            directory = Path(self.baseFilename).parent
            raise ValueError(f"another process writes to run-directory {directory}: end it first")

    def _holds(self) -> bool:
        assert self.stream is not None  # it is opened at once
        try:
            fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process, however it ends
        except BlockingIOError:
            return False
        return True

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave out a line that a full disk has no room for: the console has it."""
