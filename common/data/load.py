"""The examples of a run: the built-in tasks, or a user's own data."""

import logging
from dataclasses import dataclass, field
from functools import lru_cache

from common.backbone_source import BUILT_IN
from common.data.bad_row import BadRowError, ReadingCounts
from common.data.choose_tasks import ALL_TASKS, choose_tasks
from common.data.formats import Table
from common.data.keep import Keeper
from common.data.mappings import Mapping, detect, parse_columns
from common.data.rows import example_of
from common.data.sources import Part, parts_of
from common.example import Example, Split
from common.skills.suite import skill_examples

# A child of Flower's logger, so that it is shown where the reader runs.
log = logging.getLogger("flwr.fedmops")


@dataclass(frozen=True)
class Reading:
    """Examples, and what became of the rows that are not among them."""

    examples: tuple[Example, ...]
    counts: ReadingCounts = field(default_factory=ReadingCounts)


def load_examples(
    data: str,
    train_examples: int,
    eval_examples: int,
    eval_split: Split,
    seed: int,
    tasks: str = ALL_TASKS,
    columns: str = "",
    skip_bad_rows: bool = False,
) -> tuple[Example, ...]:
    """Load train and evaluation examples, at most so many of each task, of the wanted tasks.

    `columns` tells which column is what (parse_columns); bad rows are left out and counted where `skip_bad_rows`.
    Raises BadRowError, with file and row, for a row that is no example, and ValueError for a file that cannot be read
    and for a task that the data has not.
    """
    return read_data(data, train_examples, eval_examples, eval_split, seed, tasks, columns, skip_bad_rows).examples


@lru_cache(maxsize=1)
def read_data(
    data: str,
    train_examples: int,
    eval_examples: int,
    eval_split: Split,
    seed: int,
    tasks: str = ALL_TASKS,
    columns: str = "",
    skip_bad_rows: bool = False,
) -> Reading:
    """Load examples as load_examples does, with the counts of what was left out; these are logged once."""
    limits: dict[Split, int] = {"train": train_examples, eval_split: eval_examples}
    if data == BUILT_IN:
        built_in = (example for split, limit in limits.items() for example in skill_examples(split, limit, seed))
        reading = Reading(tuple(built_in))
    else:
        reading = _read(data, limits, parse_columns(columns), skip_bad_rows)
        for line in reading.counts.lines(data):
            log.warning(line)
    wanted = choose_tasks(tasks, sorted({example.task for example in reading.examples}), seed)
    return Reading(tuple(example for example in reading.examples if example.task in wanted), reading.counts)


def _read(data: str, limits: dict[Split, int], mapping: Mapping | None, skip_bad_rows: bool) -> Reading:
    """Read all rows, and keep those of the limits.

    Of each task and split these are the rows with the smallest hash, so that a limit draws no order from the file.
    """
    keeper, counts = Keeper(limits), ReadingCounts()
    for part in parts_of(data):
        _read_part(part, part.open(), mapping, keeper, counts, skip_bad_rows)
    examples = keeper.examples()
    if not examples:
        found = f"{counts.num_rows} rows, {counts.num_bad} of them bad" if counts.num_rows else "no rows"
        raise ValueError(f"{data} has no examples of the splits {', '.join(limits)} ({found}): give data with some")
    return Reading(examples, counts)


def _read_part(
    part: Part, table: Table, mapping: Mapping | None, keeper: Keeper, counts: ReadingCounts, skip_bad_rows: bool
) -> None:
    if table.columns and mapping is not None:
        mapping.check(table.columns, part.name)
    elif table.columns:
        mapping = detect(table.columns, part.name)
    for where, row in table.rows:
        counts.num_rows += 1
        try:
            if isinstance(row, BadRowError):
                raise row
            mapping = mapping or _detected(list(row), where)
            example = example_of(row, mapping, where, part.task, part.split)
            counts.num_duplicates += not keeper.add(example, where)
        except BadRowError as error:
            if not skip_bad_rows:
                raise
            counts.add(error)


def _detected(columns: list[str], where: str) -> Mapping:
    try:
        return detect(columns, where)
    except ValueError as error:
        raise BadRowError(where, "columns of no known kind", str(error).removeprefix(where).lstrip(": ")) from None
