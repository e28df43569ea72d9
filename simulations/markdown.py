"""Tables in markdown, and how their cells write figures."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from common.perplexity import geometric_mean


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a head and a line for each row; a bar in a cell stays in its cell."""
    lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (names, *rows)]
    return "\n".join([lines[0], "|---" * len(names) + "|", *lines[1:]]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def spread(values: Sequence[float]) -> list[str]:
    """Write perplexities over seeds: geometric mean, standard deviation where there is one, smallest to largest."""
    return [
        f"{geometric_mean(values):.3f}",
        f"{stdev(values):.3f}" if len(values) > 1 and math.isfinite(max(values)) else "",
        f"{min(values):.3f} to {max(values):.3f}",
    ]


def mean(rows: Sequence[dict[str, Any]], name: str, written: Callable[[float], str]) -> str:
    """Write the mean of a figure over the rows that have it; nothing where none has."""
    values = [row[name] for row in rows if name in row]
    return written(fmean(values)) if values else ""


def traffic(rows: Sequence[dict[str, Any]]) -> str:
    """Write the mean kilobytes of a client and round, down and up."""
    down, up = (mean(rows, f"bytes_{way}_per_client_and_round", lambda b: f"{b / 1e3:.1f}") for way in ("down", "up"))
    return f"{down} + {up}"
