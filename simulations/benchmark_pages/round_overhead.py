"""The figures of benchmarks.round_overhead as a document."""

from typing import Any

from simulations.markdown import table
from simulations.provenance import head

JSON, DOCUMENT = "round_overhead.json", "round_overhead.md"
COLUMNS = ("clients", "format", "seconds a round (median)", "range", "ms a client")


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a row for each number of clients and format."""
    return [
        [
            f"{row['clients']:,}",
            row["wire_format"],
            f"{row['median']:.3f}",
            f"{min(row['seconds']):.3f} to {max(row['seconds']):.3f}",
            f"{row['median'] / row['clients'] * 1000:.2f}",
        ]
        for row in report["rows"]
    ]


def document(report: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    return "\n\n".join([*head("A round without work", report), *sections(report).values()])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Return the table, for other documents."""
    return {"table": table(list(COLUMNS), rows(report))}
