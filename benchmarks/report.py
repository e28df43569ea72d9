"""What a benchmark found: a table on the terminal, and a document and its JSON in a directory."""

import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.table import Table

from common.atomic_file import replace_file, replace_json
from server.run_directory import versions
from simulations.grid import portable
from simulations.provenance import described


def publish(name: str, pages: ModuleType, title: str, figures: dict[str, Any], output: Path | None) -> None:
    """Print figures with the command, commit and machine that gave them; write them to a directory, if one is given.

    `pages` makes a table and a document of them: COLUMNS, `rows`, `document`, and the names JSON and DOCUMENT.
    """
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *map(portable, sys.argv[1:])])
    report = {"command": command, **described([versions()]), **figures}
    shown = Table(*pages.COLUMNS, title=title)
    for row in pages.rows(report):
        shown.add_row(*row)
    Console(width=150).print(shown)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        replace_json(output / pages.JSON, report)
        replace_file(output / pages.DOCUMENT, pages.document(report).encode())
