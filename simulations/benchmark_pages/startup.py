"""The figures of benchmarks.startup as a document."""

from typing import Any

from simulations.markdown import table
from simulations.provenance import head

JSON, DOCUMENT = "startup.json", "startup.md"
PEER = "import peft"
COLUMNS = ("start", f"time / {PEER}", "seconds (median)", "range")


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a row for each start."""
    (peer,) = (row["median"] for row in report["rows"] if row["start"] == PEER)
    return [
        [
            row["start"],
            f"{row['median'] / peer:.2f}",
            f"{row['median']:.2f}",
            f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}",
        ]
        for row in report["rows"]
    ]


def document(report: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    return "\n\n".join([*head("Until something happens", report), *sections(report).values()])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Return the table, for other documents."""
    return {"table": table(list(COLUMNS), rows(report))}
