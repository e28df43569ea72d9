"""Compression from start to end: a pruned checkpoint, what it costs, its card; all of it, or no directory."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from common.backbone import Backbone, load_backbone
from simulations.compression.card import model_card
from simulations.compression.options import Options
from simulations.compression.price import Price, measure, price_table, tokens_per_second
from simulations.compression.pruning import write_pruned
from simulations.compression.texts import Texts
from simulations.compression.tokenized import fitting
from simulations.pretraining.progress import ProgressReport


def compress(options: Options, texts: Texts, console: Console) -> None:
    """Write a pruned copy of a backbone to `options.output`, whole or not at all, and print what it costs.

    Raises ValueError for a backbone that cannot be pruned as a whole.
    """
    with directory_when_done(options.output) as unfinished, ProgressReport() as report:
        show = _step(report, 0.0, 0.5, f"pruning {options.backbone}")
        num_texts = write_pruned(options, texts.calibration, unfinished, show)
        if num_texts < options.num_texts:
            report.say(f"pruned by {num_texts} texts, not {options.num_texts}: there are no more, or they do not fit")
        # In memory together, to be timed in turns.
        backbone, pruned = (load_backbone(name, "none", options.device) for name in (options.backbone, str(unfinished)))
        before, after = _prices(backbone, pruned, texts, report)
        card = model_card(options, backbone.fingerprint, pruned.fingerprint, num_texts, before, after)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    console.print(price_table(before, after, f"{options.backbone} pruned by {options.method}"))
    console.print(f"written to {options.output}; zeros save neither bytes nor time by themselves", soft_wrap=True)


@contextmanager
def directory_when_done(output: Path) -> Iterator[Path]:
    """Give a directory beside `output` that takes its place at the end, and is removed if the end is not reached."""
    unfinished = output.with_name(f".{output.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _prices(backbone: Backbone, pruned: Backbone, texts: Texts, report: ProgressReport) -> tuple[Price, Price]:
    _step(report, 0.5, 0.6, "timing both")
    held_out = fitting(texts.held_out, backbone)
    if len(held_out) < len(texts.held_out):
        report.say(f"left out {len(texts.held_out) - len(held_out)} of {len(texts.held_out)} answers: too long")
    was, now = tokens_per_second((backbone, pruned), held_out)
    before = measure(backbone, held_out, was, _step(report, 0.6, 0.8, "scoring the backbone"))
    return before, measure(pruned, held_out, now, _step(report, 0.8, 1.0, "scoring the pruned backbone"))


def _step(report: ProgressReport, start: float, end: float, line: str) -> Callable[[float], None]:
    """Show a step of the work, which begins and ends at shares of the whole; return what shows how far it is."""
    report.update(start, line)
    return lambda share: report.update(start + share * (end - start), line)
