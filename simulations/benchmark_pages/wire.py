"""The figures of benchmarks.wire as a document."""

from typing import Any

from simulations.markdown import table
from simulations.provenance import head

JSON, DOCUMENT = "wire.json", "wire.md"
COLUMNS = ("backbone", "method", "format", "parameters", "MiB down", "MiB up", "of LoRA's update")
LORA = "LoRA"


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a row for each shape, method and format."""
    lora = {row["backbone"]: row["bytes_up"] for row in report["rows"] if row["method"].startswith(LORA)}
    return [
        [
            row["backbone"],
            row["method"],
            row["wire_format"],
            f"{row['parameters']:,}",
            f"{row['bytes_down'] / 2**20:.2f}",
            f"{row['bytes_up'] / 2**20:.2f}",
            f"{row['bytes_up'] / lora[row['backbone']]:.0%}",
        ]
        for row in report["rows"]
    ]


def document(report: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    return "\n\n".join([*head("A message of a round", report), *sections(report).values()])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Return the table, for other documents."""
    return {"table": table(list(COLUMNS), rows(report))}
