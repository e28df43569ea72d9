"""Which tables a data set's name means, and the split that each one's name tells."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.backbone_source import BUILT_IN
from common.data.formats import SUFFIXES, Table, open_table, stem_of, suffix_of
from common.data.hub_name import HubName, parse_hub_name
from common.example import Split

# What files, directories and splits of the hub are called, alone or before a further name ("train-00000-of-00002").
_NAMES: dict[str, Split] = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
_NAMES |= {"dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Part:
    """A table of a data set. Rows that name no task are of `task`; those that name no split are of `split`, if any."""

    name: str
    task: str
    split: Split | None
    open: Callable[[], Table]


def check_data_name(data: str) -> None:
    """Raise ValueError unless a name is built in, a file of a known format, a directory or looks like a hub id."""
    path = Path(data)
    if data == BUILT_IN or path.is_dir():
        return
    if path.is_file():
        if not suffix_of(path):
            raise ValueError(f"data {data!r} is of no known format: expected {', '.join(SUFFIXES)}; rename the file")
    elif parse_hub_name(data) is None or suffix_of(path):
        raise ValueError(
            f"data {data!r} is neither {BUILT_IN!r} nor a file: give the path of a file ({', '.join(SUFFIXES)}) or "
            "directory, or a hub id (owner/name:subset@revision)"
        )


def parts_of(data: str) -> list[Part]:
    """Return the tables of a file, a directory or a data set of the hub.

    Where no part is named test, those named train are split by the prompts' hash. Raises ValueError for a directory
    without data, and for one of which only some files name a split.
    """
    check_data_name(data)
    path = Path(data)
    if path.is_file():
        return [_part(path, None, stem_of(path))]
    parts = _parts_of_directory(path) if path.is_dir() else _parts_of_hub(parse_hub_name(data))
    if any(part.split == "test" for part in parts):
        return parts
    return [replace(part, split=None) if part.split == "train" else part for part in parts]


def split_named(words: Sequence[str]) -> Split | None:
    """Return the split that a path's words name, the last word first: train, train-0, train_data, but not trains."""
    for word in reversed(words):
        match = re.match(r"[a-z]+(?![a-z])", word.lower())
        if match and match.group() in _NAMES:
            return _NAMES[match.group()]
    return None


def _part(path: Path, split: Split | None, task: str) -> Part:
    return Part(str(path), task, split, lambda: open_table(path))


def _parts_of_directory(directory: Path) -> list[Part]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and suffix_of(path)]
    words = {path: (*path.relative_to(directory).parts[:-1], stem_of(path)) for path in files}
    files = [path for path in files if not any(word.startswith(".") for word in words[path])]
    if not files:
        raise ValueError(f"{directory} holds no data: expected files that end in {', '.join(SUFFIXES)}; add some")
    splits = {path: split_named(words[path]) for path in files}
    unnamed = [path for path in files if splits[path] is None]
    if unnamed and len(unnamed) < len(files):
        raise ValueError(
            f"{unnamed[0]} names no split, but other files of {directory} do: expected train, validation or test at "
            "the beginning of every file's or directory's name, or of none; rename it or move it away"
        )
    # A file that is called train is no task of that name.
    return [_part(path, splits[path], directory.resolve().name if splits[path] else stem_of(path)) for path in files]


def _parts_of_hub(name: HubName | None) -> list[Part]:
    from common.data.tables import open_hub  # takes a second to import

    assert name is not None, "checked above"
    tables = open_hub(name)
    named = {split: table for split, table in tables.items() if split_named([split])}
    task = name.repository.split("/")[1]

    def part(split: str, table: Table) -> Part:
        return Part(f"{name}, {split}", task, split_named([split]), lambda: table)

    # Splits of other names (unsupervised, extra) stay out where some have ours.
    return [part(split, table) for split, table in (named or tables).items()]
