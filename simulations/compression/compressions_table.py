"""The table of compressions, from its JSON. Imports no torch."""

from typing import Any

from simulations import markdown
from simulations.provenance import head

JSON, DOCUMENT = "compressions.json", "compressions.md"
NAMES = ["backbone", "quantization", "on disk, MB", "in memory, MB", "of uncompressed", "forward pass, tokens/s"]
NAMES += ["against uncompressed", "local step, ms", "against uncompressed", "perplexity", "against uncompressed"]


def table(report: dict[str, Any]) -> str:
    """Write a line for each compression; one that was refused has no figures."""
    return markdown.table(NAMES, [_line(row) for row in report["rows"]])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Write what documents may show."""
    return {"table": table(report)}


def document(report: dict[str, Any]) -> str:
    """Write all that compressions.md says."""
    refused = [
        f"- {row['backbone']}, {row['quantization']}: {row['refused']}" for row in report["rows"] if "refused" in row
    ]
    parts = [
        *head(
            "What compressing a backbone costs",
            report,
            f"Device {report['device']}, computed in {report['compute_dtype']}.",
        ),
        f"Perplexity of {report['num_answers']} answers of the validation split, backbone alone. Times are medians, in "
        "turns with the uncompressed backbone; a local step is one of the default mixture. Weights are quantized as "
        "they are loaded, from the files whose size is given; memory is that of weights and buffers.",
        table(report).strip(),
        *(["Refused:\n\n" + "\n".join(refused)] if refused else []),
    ]
    return "\n\n".join(parts) + "\n"


def _line(row: dict[str, Any]) -> list[str]:
    names = [row["backbone"], row["quantization"]]
    if "refused" in row:
        return [*names, "refused", *[""] * (len(NAMES) - 3)]
    return [
        *names,
        f"{row['disk_bytes'] / 1e6:.2f}",
        f"{row['resident_bytes'] / 1e6:.2f}",
        f"{row['resident_ratio']:.2f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['speed_ratio']:.2f}",
        f"{row['step_seconds'] * 1e3:.1f}",
        f"{row['step_ratio']:.2f}",
        f"{row['perplexity']:.3f}",
        f"{row['perplexity_ratio'] - 1:+.1%}",
    ]
