"""Who would own what: the clients' tasks as a table and a picture, before anything is trained."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.atomic_file import replace_file, replace_json
from common.config import read_config
from common.example import Example
from simulations.settings import resolve

JSON, PLOT = "partitions.json", "partitions.png"
MAX_COLUMNS = 12  # more clients than that stand below each other

Counts = list[Counter[str]]  # for each client, its training examples by task


def show_partitions(words: Sequence[str], output: Path | None, console: Console) -> None:
    """Print each client's examples by task; write JSON and a picture to a directory, if one is given.

    Raises ValueError for bad input, and where a client would own nothing.
    """
    config = read_config(resolve(words))
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a directory, got {output}")
    with console.status("reading the data"):
        # Needs the `datasets` library and reads the data: only worth it once the rest is right.
        from common.partition import partitions_of

        partitions = partitions_of(config)
    training = [Counter(example.task for example in owned if example.split == "train") for owned in partitions]
    scored = [sum(example.split == config.eval_split for example in owned) for owned in partitions]
    console.print(table(training, scored, config.eval_split))
    console.print(_summary(partitions, training), soft_wrap=True, markup=False, highlight=False)
    if output is not None:
        from simulations.partitions_plot import draw  # matplotlib takes a second to import

        output.mkdir(parents=True, exist_ok=True)
        report = {
            "partition": config.partition,
            "seed": config.seed,
            "distance": distance(training),
            "clients": [
                {"train": dict(sorted(own.items())), config.eval_split: count}
                for own, count in zip(training, scored, strict=True)
            ],
        }
        replace_json(output / JSON, report)
        replace_file(output / PLOT, draw(training))
        console.print(f"written to {output / JSON} and {output / PLOT}", soft_wrap=True)


def table(training: Counts, scored: Sequence[int], eval_split: str) -> Table:
    """Return a line for each task and a column for each client, or where those are many a line for each client."""
    built = Table(title="Training examples, by client and task")
    tasks = sorted(set().union(*training))
    if len(training) > MAX_COLUMNS:
        built.add_column("client", justify="right")
        for name in ("tasks", "train", eval_split):
            built.add_column(name, justify="right")
        built.add_column("largest task")
        for client, (own, count) in enumerate(zip(training, scored, strict=True)):
            (task, most), *_ = own.most_common(1)
            largest = f"{escape(task)} ({most / own.total():.0%})"
            built.add_row(str(client), str(len(own)), str(own.total()), str(count), largest)
        return built
    built.add_column("task")
    for client in range(len(training)):
        built.add_column(str(client), justify="right")
    for task in tasks:
        built.add_row(escape(task), *(str(own[task] or "") for own in training))
    built.add_section()
    built.add_row("tasks", *(str(len(own)) for own in training))
    built.add_row("train", *(str(own.total()) for own in training))
    built.add_row(eval_split, *map(str, scored))
    return built


def distance(training: Counts) -> float:
    """Return the mean total variation distance of a client's shares of the tasks from those of all clients together.

    0: all clients alike; close to 1: many clients that share no task.
    """
    pooled = sum(training, Counter())
    return sum(
        sum(abs(own[task] / own.total() - count / pooled.total()) for task, count in pooled.items()) / 2
        for own in training
    ) / len(training)


def _summary(partitions: Sequence[Sequence[Example]], training: Counts) -> str:
    holders = Counter(task for own in training for task in own)
    alone = sum(count == 1 for count in holders.values())
    return (
        f"{len(training)} clients, {len(holders)} tasks, {sum(map(len, partitions))} examples; {alone} tasks have one "
        f"holder; mean distance of a client's tasks from all clients' (0: alike, 1: nothing in common): "
        f"{distance(training):.2f}"
    )
