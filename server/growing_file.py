"""A file of JSON lines that grows. What a full disk has no room for waits, and is written as soon as it has."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger("flwr.fedmops")


class GrowingFile:
    """Appends lines; the file never ends within one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        path.touch()

    def append(self, line: dict[str, Any]) -> None:
        """Append a line, now or when there is room; the first that has to wait is told."""
        told = bool(self._waiting)
        self._waiting.append((json.dumps(line) + "\n").encode())
        try:
            self.write_waiting()
        except OSError as error:
            if not told:
                log.warning("%s cannot grow, its lines wait: %s", self.path, error)

    def write_waiting(self) -> None:
        """Write what waits. Raises OSError where there is still no room; the file is as before then."""
        if not self._waiting:
            return
        content = b"".join(self._waiting)
        with open(self.path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
        self._waiting.clear()
