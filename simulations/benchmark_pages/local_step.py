"""The figures of benchmarks.local_step as a document."""

from typing import Any

from simulations.markdown import table
from simulations.provenance import head

JSON, DOCUMENT = "local_step.json", "local_step.md"
OURS, CACHED = "mixture", "mixture, lower layers kept"
ANSWERS, ANSWERS_CACHED = "prompts seen by answers", "prompts seen by answers, inputs kept"
MIXTURES = (OURS, CACHED, ANSWERS, ANSWERS_CACHED)
SHOWN = ("torch", "transformers", "peft", "bitsandbytes")
# Ratios first: machines are noisy.
COLUMNS = (
    "method",
    *("time / mixture", "time / kept", "time / answers, kept"),
    *("tokens/s", "ms", "of the floor", "peak MiB", "parameters"),
)


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a row for each method; ratios are medians, with quartiles."""
    return [
        [
            name,
            *(_spread(found["time_against"].get(ours)) for ours in (OURS, CACHED, ANSWERS_CACHED)),
            f"{found['tokens_per_second']:,.0f}",
            f"{found['median_seconds'] * 1000:.1f}",
            f"{found['part_of_floor']:.0%}" if name in MIXTURES else "",
            f"{found['peak_bytes'] / 2**20:,.0f}",
            f"{found['parameters']:,}",
        ]
        for name, found in report["methods"].items()
    ]


def title(report: dict[str, Any]) -> str:
    """Say what was measured, on what."""
    return (
        f"A training step of {report['batch_size']} texts of mixed lengths, {report['tokens_per_step']:.0f} real "
        f"tokens: {report['backbone']}, {report['quantization']}, {report['dtype']}, {report['device']}"
    )


def document(report: dict[str, Any]) -> str:
    """Write the figures as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if name in SHOWN)
    return "\n\n".join([*head("A training step", report, f"{versions}."), *sections(report).values()])


def sections(report: dict[str, Any]) -> dict[str, str]:
    """Return the table, for other documents."""
    return {"table": f"{title(report)}.\n\n{table(list(COLUMNS), rows(report))}"}


def _spread(ratios: list[float] | None) -> str:
    if ratios is None:
        return ""
    low, middle, high = ratios
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
