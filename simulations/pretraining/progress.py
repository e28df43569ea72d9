"""Progress of a long run: a live bar on a terminal, a plain line every ten seconds elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressReport:
    """Show the fraction done and a line of text; use it as a context manager."""

    def __init__(self) -> None:
        self.console = Console()
        self._last_line = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not self.live,
        )
        self._task = self._bar.add_task("", total=1.0)

    @property
    def live(self) -> bool:
        return self.console.is_terminal

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, fraction: float, line: str) -> None:
        if self.live:
            self._bar.update(self._task, completed=fraction, description=line)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{fraction:6.1%}  {line}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
