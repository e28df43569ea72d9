"""The tables of a comparison, from results.json alone."""

from collections.abc import Sequence
from typing import Any

from common.perplexity import geometric_mean
from simulations.comparison import CLIENTS, SEARCH, SUMMARY
from simulations.comparison_clients import clients
from simulations.comparison_summary import perplexity, summary, worse_clients
from simulations.grid import shown
from simulations.markdown import mean, spread, table, traffic
from simulations.provenance import head

PLOTS = {
    "rounds.png": "Perplexity by round: geometric mean over seeds, the band from the smallest to the largest",
    "bytes.png": "Perplexity by megabytes sent, down and up, of all clients",
    "clients.png": "Every client with every seed: its backbone alone (grey) and the method",
}

# Ends the name of a group's section that is not in results.md, but for other documents.
IN_SHORT = ", in short"

Row = dict[str, Any]


def sections(report: Row) -> dict[str, str]:
    """Return the parts of the document by name: a table for each group, the summary, the clients, the search."""
    groups = dict.fromkeys(method["group"] for method in report["methods"].values())
    found = {group: group_table(report, group) for group in groups}
    found |= {f"{group}{IN_SHORT}": short_table(report, group) for group in groups}
    found |= {SUMMARY: summary(report), CLIENTS: clients(report), SEARCH: search_table(report)}
    return {name: text for name, text in found.items() if text}


def document(report: Row) -> str:
    """Write all that results.md says."""
    rows = [row for method in report["methods"].values() for row in method["runs"]]
    search = report["search"]
    rounds = f", at most {search['num_rounds']} rounds" if search["num_rounds"] else ""
    parts = [
        *head(
            "Comparison",
            report,
            f"{len(rows)} of {len(report['methods']) * len(report['seeds'])} runs have a result. "
            f"Shared settings: {_settings(report['shared']) or 'the defaults'}.",
        ),
        f"Perplexity of the {report['split']} split, geometric mean over clients; then over seeds "
        f"({_listed(report['seeds'])}): geometric mean, standard deviation, smallest to largest. Each method has the "
        f"best of its learning rates by the {search['split']} split (seeds {_listed(search['seeds'])}{rounds}); at the "
        "edge of its rates a better one may lie beyond. Megabytes of a run are those of all clients, down and up; "
        "kilobytes are those of a client and round.",
    ]
    for name, text in sections(report).items():
        if name.endswith(IN_SHORT):  # for other documents
            continue
        parts += [f"## {name[:1].upper()}{name[1:]}", text.strip()]
    if rows:
        parts += ["## Plots", *(f"![{title}]({name})" for name, title in PLOTS.items())]
    if report["failed"]:
        parts += ["## Failed", "\n".join(f"- {run}: {reason}" for run, reason in report["failed"].items())]
    settings = [
        [name, method["label"], _settings(method["settings"]), _settings(method["source"] or {})]
        for name, method in report["methods"].items()
    ]
    parts += ["## Settings", table(["name", "method", "settings", "starts from a run of"], settings).strip()]
    return "\n\n".join(parts) + "\n"


def _settings(settings: Row) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in settings.items())


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def reference(report: Row, group: str) -> Row | None:
    """Return the method that a group is set against: its first mixture, or else the first mixture of all."""
    mixtures = [method for method in report["methods"].values() if method["kind"] == "mixture" and method["runs"]]
    return next((method for method in mixtures if method["group"] == group), mixtures[0] if mixtures else None)


def group_table(report: Row, group: str) -> str:
    """Write a line for each method of a group: its perplexity over the seeds, and what it costs."""
    first = reference(report, group)
    names = ["method", "learning rate", "perplexity", "s.d.", "range", "seeds"]
    names += [f"against {first['label']}"] if first else []
    names += ["parameters", "MB a run", "kB down + up", "clients worse than backbone"]
    methods = [method for method in report["methods"].values() if method["group"] == group]
    num_seeds = len(report["seeds"])
    return table(names, [_cells(method, first, num_seeds, len(names)) for method in methods])


def short_table(report: Row, group: str) -> str:
    """Write what a reader in a hurry wants of a group: the backbone alone, then the methods, the best first."""
    methods = [method for method in report["methods"].values() if method["group"] == group and method["runs"]]
    if not methods:
        return ""
    first = reference(report, group)
    rows = []
    for method in sorted(methods, key=perplexity):
        figures = [*spread([row["perplexity"] for row in method["runs"]])[:2], str(len(method["runs"]))]
        against = [_against(method, first).split(" (")[0]] if first else []
        rows.append([method["label"], *figures, *against, f"{method['num_parameters']:,}", worse_clients(method)])
    backbone = spread([row["backbone_perplexity"] for row in methods[0]["runs"]])[:2]
    rows.append(["backbone alone", *backbone, str(len(methods[0]["runs"])), *([""] if first else []), "0", ""])
    names = ["method", "perplexity", "s.d.", "seeds", *([f"against {first['label']}"] if first else [])]
    return table([*names, "parameters", "clients worse than backbone"], rows)


def _cells(method: Row, first: Row | None, num_seeds: int, width: int) -> list[str]:
    runs = method["runs"]
    rate = "" if method["learning_rate"] is None else shown(method["learning_rate"])
    rate += " (edge)" if method["at_edge"] else ""
    seeds = str(len(runs)) if len(runs) == num_seeds else f"{len(runs)} of {num_seeds}"
    if not runs:
        head = [method["label"], rate, "no result", "", "", seeds]
        return head + [""] * (width - len(head))
    megabytes = [{"bytes": row["rounds"][-1]["bytes"]} for row in runs]
    return [
        method["label"],
        rate,
        *spread([row["perplexity"] for row in runs]),
        seeds,
        *([_against(method, first)] if first else []),
        "" if method["num_parameters"] is None else f"{method['num_parameters']:,}",
        mean(megabytes, "bytes", lambda count: f"{count / 1e6:.2f}"),
        traffic(runs),
        worse_clients(method),
    ]


def _against(method: Row, first: Row) -> str:
    """Write how far a method is above the reference, by the seeds that both have: the mean, smallest to largest."""
    of_first = {row["seed"]: row["perplexity"] for row in first["runs"]}
    ratios = [row["perplexity"] / of_first[row["seed"]] for row in method["runs"] if row["seed"] in of_first]
    if method is first or not ratios:
        return ""
    over_seeds = f" ({min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%})" if len(ratios) > 1 else ""
    return f"{geometric_mean(ratios) - 1:+.1%}{over_seeds}"


def search_table(report: Row) -> str:
    """Write each method's rates with their perplexity on the validation split, the chosen one in bold."""
    searched = {method["label"]: method["search"] for method in _with_search(report)}
    rows = []
    for method in _with_search(report):
        search = method["search"]
        cells = []
        for rate, value in zip(search["rates"], search["perplexity"], strict=True):
            text = "no result" if value is None else f"{value:.3f}"
            cells.append(f"**{text}** ({shown(rate)})" if rate == search["chosen"] else f"{text} ({shown(rate)})")
        rows.append([method["label"], method["group"], *cells, "yes" if search["at_edge"] else ""])
    if not searched:
        return ""
    num_rates = len(rows[0]) - 3
    return table(["method", "group", *(f"rate {index + 1}" for index in range(num_rates)), "at the edge"], rows)


def _with_search(report: Row) -> list[Row]:
    return [method for method in report["methods"].values() if "perplexity" in method["search"]]
