"""A comparison in a few sentences: the mixture against the best of every kind of baseline, and the clients it harms."""

from collections.abc import Sequence
from typing import Any

from common.perplexity import geometric_mean
from simulations.figures import num_worse_clients

# What baselines are called, by kind.
BASELINES = {"prompt": "prompt baseline", "lora": "LoRA"}

Row = dict[str, Any]


def summary(report: Row) -> str:
    """Write a paragraph for each group with a mixture and baselines; the mixture is the first of its group.

    The best baseline is the best by the figures of the comparison itself, which is to the baseline's favour.
    """
    methods = [method for method in report["methods"].values() if method["runs"]]
    paragraphs = []
    for group in dict.fromkeys(method["group"] for method in methods):
        members = [method for method in methods if method["group"] == group]
        mixture = next((method for method in members if method["kind"] == "mixture"), None)
        if mixture is not None and (best := _best_baselines(members)):
            paragraphs.append(_paragraph(group, mixture, best))
    return "\n\n".join(paragraphs) + "\n" if paragraphs else ""


def _best_baselines(members: Sequence[Row]) -> list[tuple[Row, str]]:
    """Return the best baselines, each with what it is the best of."""
    found: list[tuple[Row, list[str]]] = []
    for kind, word in BASELINES.items():
        of_kind = [method for method in members if method["kind"] == kind]
        equal = [method for method in of_kind if method["equal_bytes"]]
        for among, name in ((equal, f"the best {word} at equal bytes"), (of_kind, f"the best {word} overall")):
            if among:
                best = min(among, key=perplexity)
                names = next((names for method, names in found if method is best), None)
                if names is None:
                    found.append((best, names := []))
                names.append(name)
    return [(method, " and ".join(names)) for method, names in found]


def _paragraph(group: str, mixture: Row, best: Sequence[tuple[Row, str]]) -> str:
    sentences = [f"Group {group}: *{mixture['label']}* has perplexity {perplexity(mixture):.3f}."]
    sentences += [_set_against(mixture, baseline, name) for baseline, name in best]
    counts = [
        f"{worse_clients(method)} with *{method['label']}*" for method in (mixture, *(baseline for baseline, _ in best))
    ]
    sentences.append(f"Clients no better than their backbone alone, over all seeds: {', '.join(counts)}.")
    return " ".join(sentences)


def _set_against(mixture: Row, baseline: Row, name: str) -> str:
    of_mixture = {row["seed"]: row["perplexity"] for row in mixture["runs"]}
    ratios = [of_mixture[row["seed"]] / row["perplexity"] for row in baseline["runs"] if row["seed"] in of_mixture]
    said = f"{name[:1].upper()}{name[1:]}, *{baseline['label']}*, has {perplexity(baseline):.3f}"
    if not ratios:
        return f"{said}; no seed has both."
    least, most = 1 - max(ratios), 1 - min(ratios)
    spread = f", by seed {_below(least)} to {_below(most)}" if len(ratios) > 1 else ""
    return f"{said}: the mixture is {_below(1 - geometric_mean(ratios))} it ({_seeds(len(ratios))}{spread})."


def perplexity(method: Row) -> float:
    """Return the geometric mean over the seeds of a method with results."""
    return geometric_mean(row["perplexity"] for row in method["runs"])


def worse_clients(method: Row) -> str:
    """Say how many clients, over all seeds, the method leaves no better than their backbone alone."""
    return f"{sum(map(num_worse_clients, method['runs']))} of {sum(len(row['clients']) for row in method['runs'])}"


def _below(share: float) -> str:
    return f"{abs(share):.1%} {'below' if share >= 0 else 'above'}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
