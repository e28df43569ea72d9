"""Measures beyond perplexity in a run's result: of the backbone alone and after the last round."""

import logging
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from common.measures import MEASURES, Measured, means
from common.wire.preparation import PrepareReply
from common.wire.rounds import EvaluateReply

log = logging.getLogger("flwr.fedmops")

BEFORE, AFTER = "backbone_measures", "measures"


def add_measures(
    figures: dict[str, Any],
    tasks: list[dict[str, Any]],
    replies: Mapping[int, PrepareReply],
    last: Mapping[int, EvaluateReply],
) -> None:
    """Add to a result's clients, to each client's tasks, to its tasks over all clients, and to the whole.

    A client's figure is the mean over its measured examples, the whole's the mean over clients. A client without a last
    reply has the backbone's alone.
    """
    for row in figures["clients"]:
        before = replies[row["client"]].measured
        row[BEFORE] = means(before.values())
        if row["client"] in last:
            after = last[row["client"]].measured
            row[AFTER] = means(after.values())
            row["measures_by_task"] = [{"task": task} | _both([before], [after], task) for task in after]
    for row in tasks:
        task = row["task"]
        holders = [client for client in last if task in last[client].measured and task in replies[client].measured]
        row |= _both(
            before=[replies[client].measured for client in holders],
            after=[last[client].measured for client in holders],
            task=task,
        )
    replied = [row for row in figures["clients"] if AFTER in row]
    for key in (BEFORE, AFTER):
        figures[key] = {
            name: fmean(row[key][name] for row in replied if name in row[key])
            for name in MEASURES
            if any(name in row[key] for row in replied)
        }
    for name, after in figures[AFTER].items():
        log.info("%s: %.3f, of the backbone alone %.3f", name, after, figures[BEFORE].get(name, float("nan")))


def _both(before: Iterable[Measured], after: Iterable[Measured], task: str) -> dict[str, Any]:
    """Set a task's means before and after beside each other."""
    return {key: means(measured.get(task, {}) for measured in each) for key, each in ((BEFORE, before), (AFTER, after))}
