"""What federation did to every client: its perplexity alone, with the others, and personalised."""

import math
from collections.abc import Callable
from typing import Any

from simulations.markdown import table

Row = dict[str, Any]


def clients(report: Row) -> str:
    """Write a table for each method that has a local-only counterpart or personalised figures.

    Rows are the clients of the first seed, as partitions differ by seed; the sentence below counts those of all seeds.
    """
    parts = []
    for name, method in report["methods"].items():
        local = next((each for each in report["methods"].values() if each["local_of"] == name and each["runs"]), None)
        personalised = any("personalised_perplexity" in client for run in method["runs"] for client in run["clients"])
        if method["runs"] and (local or personalised):
            parts.append(_of_method(method, local, personalised))
    return "\n\n".join(parts) + "\n" if parts else ""


def _of_method(method: Row, local: Row | None, has_personalised: bool) -> str:
    by_seed = {run["seed"]: _with_local(run, local) for run in method["runs"]}
    seed, first = next(iter(by_seed.items()))
    columns: dict[str, Callable[[Row], str]] = {
        "client": lambda row: str(row["client"]),
        "examples": lambda row: str(row["num_examples"]),
        **({"answer tokens": lambda row: f"{row['num_tokens']:,}"} if "num_tokens" in first[0] else {}),
        "backbone": lambda row: f"{row['backbone_perplexity']:.3f}",
        **({"local only": lambda row: _written(row, "local")} if local else {}),
        "federated": lambda row: _written(row, "perplexity"),
        **({"personalised": lambda row: _written(row, "personalised_perplexity")} if has_personalised else {}),
        "federated is no better than": lambda row: " and ".join(_harms(row)),
    }
    lines = table(list(columns), [[write(row) for write in columns.values()] for row in first])
    return f"*{method['label']}*, {method['group']}, seed {seed}:\n\n{lines}\n{_counts(list(by_seed.values()))}"


def _with_local(run: Row, local: Row | None) -> list[Row]:
    """Return a run's clients with their perplexity of the local-only run of the same seed, where there is one."""
    others = [other for other in local["runs"] if other["seed"] == run["seed"]] if local else []
    alone = {row["client"]: row["perplexity"] for other in others for row in other["clients"] if "perplexity" in row}
    return [row | ({"local": alone[row["client"]]} if row["client"] in alone else {}) for row in run["clients"]]


def _written(row: Row, key: str) -> str:
    if key not in row:
        return "no reply" if key == "perplexity" else ""
    return f"{row[key]:.3f}"


def _harms(row: Row) -> list[str]:
    """Name what federation is no better than for a client; no reply is no better."""
    federated = row.get("perplexity", math.inf)
    found = ["local only"] if "local" in row and federated >= row["local"] else []
    return found + (["backbone"] if federated >= row["backbone_perplexity"] else [])


def _counts(runs: list[list[Row]]) -> str:
    rows = [row for run in runs for row in run]
    with_local = [row for row in rows if "local" in row]
    harmed = [_harms(row) for row in rows]
    said = [f"{sum('backbone' in names for names in harmed)} of {len(rows)} clients no better than their backbone"]
    if with_local:
        said.insert(0, f"{sum('local only' in names for names in harmed)} of {len(with_local)} no better than alone")
    own = [row for row in rows if "personalised_perplexity" in row]
    if own:
        worse = sum(row["personalised_perplexity"] >= row.get("perplexity", math.inf) for row in own)
        said.append(f"personalising made {len(own) - worse} of {len(own)} better")
    return f"Over {len(runs)} seed{'s' if len(runs) > 1 else ''}: federation left {'; '.join(said)}."
