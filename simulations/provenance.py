"""Where figures come from: the commit and versions of their runs, and the machine."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from server.run_directory import VERSIONS


def provenance(directories: Iterable[Path]) -> dict[str, Any]:
    """Return commit and versions of finished runs, and this machine; where runs differ, all values are named."""
    return described([json.loads((directory / VERSIONS).read_text()) for directory in directories])


def described(versions: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Return the commit and versions of some measurements, and this machine."""
    named = {name: ", ".join(dict.fromkeys(each[name] for each in versions)) for name in (versions or [{}])[0]}
    return {
        "commit": named.pop("commit", None),
        "versions": named,
        "machine": {"processor": _processor(), "num_cores": os.cpu_count()},
    }


def head(title: str, report: dict[str, Any], more: str = "") -> list[str]:
    """Begin a document: its title, the command, and where the figures come from, with what there is to say beside."""
    return [f"# {title}", f"```\n{report['command']}\n```", f"{place(report)} {more}".strip()]


def place(report: dict[str, Any]) -> str:
    """Say in one line what `provenance` found."""
    machine = report["machine"]
    return f"Commit {report['commit'] or 'unknown'}, {machine['processor']}, {machine['num_cores']} cores."


def _processor() -> str:
    """Return the processor's name, as Linux says it or as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
