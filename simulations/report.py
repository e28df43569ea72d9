"""What a run did to every client, as a table."""

import math
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from common.measures import ROUGE_L

MAX_NAMED_TASKS = 6
MEASURED_WIDTH = len("0.00 → 0.00")


def result_table(result: dict[str, Any], method: str = "mixture") -> Table:
    """Set each client's perplexity with the method beside the backbone's, from a run's result.json.

    Where clients trained on for themselves, or compress the backbone in different ways, there is a column for that too.
    """
    table = Table(title="Perplexity of the answers, per client")
    table.add_column("client", justify="right")
    table.add_column("tasks")
    differ = len({row.get("quantization") for row in result["clients"]}) > 1
    if differ:
        table.add_column("compression")
    for name in ("examples", "backbone", method, "change"):
        table.add_column(name, justify="right")
    personal = "personalised_perplexity" in result
    if personal:
        table.add_column("personalised", justify="right")
    for row in result["clients"]:
        table.add_row(
            str(row["client"]),
            named_tasks(row["tasks"]),
            *([row["quantization"]] if differ else []),
            str(row["num_examples"]),
            *_before_and_after(row["backbone_perplexity"], row.get("perplexity")),
            *([_figure(row.get("personalised_perplexity"))] if personal else []),
        )
    table.add_section()
    table.add_row(
        "all",
        "geometric mean over clients",
        *([""] if differ else []),
        str(sum(row["num_examples"] for row in result["clients"] if "perplexity" in row)),
        *_before_and_after(result["backbone_perplexity"], result["perplexity"]),
        *([_figure(result["personalised_perplexity"])] if personal else []),
    )
    return table


def data_line(counts: dict[str, Any]) -> str:
    """Say in one line what was cut, left out or skipped, from `data` of a result.json; nothing if all was used."""
    splits = counts["train"], counts["evaluation"]
    train, scored = (split["num_examples"] for split in splits)
    train_left_out, left_out = (split["num_answers_too_long"] + split["num_prompts_too_long"] for split in splits)
    train_cut, cut = (split["num_prompts_cut"] for split in splits)
    said = []
    if train_left_out or left_out:
        said.append(f"{train_left_out} of {train} training and {left_out} of {scored} evaluation examples are left out")
    if train_cut or cut:
        said.append(f"the prompts of {train_cut} training and {cut} evaluation examples are cut")
    if said:
        said[-1] += ", as they are too long"
    if counts["num_bad_rows"]:
        said.append(f"{counts['num_bad_rows']} bad rows are skipped")
    return f"data: {'; '.join(said)}" if said else ""


def measures_table(result: dict[str, Any]) -> Table:
    """Set each client's measures beyond perplexity after the last round beside the backbone's."""
    names = list(result["backbone_measures"])
    table = Table(title="Measures of the answers, per client: backbone alone → after the last round")
    table.add_column("client", justify="right")
    table.add_column("tasks")
    for name in names:
        table.add_column(_header(name), justify="right", min_width=MEASURED_WIDTH)
    for row in result["clients"]:
        table.add_row(str(row["client"]), named_tasks(row["tasks"]), *(_measured(row, name) for name in names))
    table.add_section()
    table.add_row("all", "mean over clients", *(_measured(result, name) for name in names))
    return table


def gate_line(last_round: dict[str, Any]) -> str:
    """Say in one line whether the gate tells tasks apart, from the last line of a run's rounds.jsonl."""
    return (
        f"gate: {last_round['task_expert_information']:.2f} nats of information between task and expert, at most "
        f"{math.log(len(last_round['expert_use'])):.2f}; entropy {last_round['gate_entropy']:.2f}; "
        f"the least used expert has {last_round['smallest_expert_use']:.1%} of the weight"
    )


def named_tasks(tasks: Sequence[str]) -> str:
    """Name tasks in a table; many are counted."""
    return escape(", ".join(tasks)) if len(tasks) <= MAX_NAMED_TASKS else f"{len(tasks)} tasks"


def _header(name: str) -> str:
    return "ROUGE-L" if name == ROUGE_L else name.replace("-", " ")


def _measured(row: dict[str, Any], name: str) -> str:
    """Say a measure before and after; a client without such examples has none."""
    if name not in row["backbone_measures"]:
        return ""
    before, after = row["backbone_measures"][name], row.get("measures", {}).get(name)
    return f"{before:.2f} → " + ("no reply" if after is None else f"{after:.2f}")


def _figure(perplexity: float | None) -> str:
    return "no reply" if perplexity is None else f"{perplexity:.2f}"


def _before_and_after(before: float, after: float | None) -> tuple[str, str, str]:
    if after is None:
        return f"{before:.2f}", _figure(after), ""
    change = after / before - 1
    colour = "green" if change < 0 else "red"
    return f"{before:.2f}", _figure(after), f"[{colour}]{change:+.0%}[/{colour}]"
