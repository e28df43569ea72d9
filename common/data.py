"""The examples of a run: the built-in tasks, or a JSONL file."""

import gzip
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from common.backbone_source import BUILT_IN
from common.example import Example, Split
from common.near_names import did_you_mean
from common.skills.suite import skill_examples

# Where a file names no splits, or no validation split, the examples' prompts decide by their hash.
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2

ALL_TASKS = "all"
ENCODING = "utf-8-sig"  # UTF-8, with or without the mark that some programs put first


@lru_cache(maxsize=1)
def load_examples(
    data: str, train_examples: int, eval_examples: int, eval_split: Split, seed: int, tasks: str = ALL_TASKS
) -> tuple[Example, ...]:
    """Load train and evaluation examples, at most so many of each task, of the wanted tasks.

    Raises ValueError, with the line, for a row that is no example, and for a task that the data has not.
    """
    limits: dict[Split, int] = {"train": train_examples, eval_split: eval_examples}
    if data == BUILT_IN:
        examples = tuple(example for split, limit in limits.items() for example in skill_examples(split, limit, seed))
    else:
        examples = _read_jsonl(Path(data), limits)
    wanted = choose_tasks(tasks, sorted({example.task for example in examples}), seed)
    return tuple(example for example in examples if example.task in wanted)


def choose_tasks(wanted: str, known: Sequence[str], seed: int) -> set[str]:
    """Read the key `tasks`: all, a number of tasks, of which a larger one holds the smaller one's, or names."""
    if wanted == ALL_TASKS:
        return set(known)
    if wanted.strip().isdecimal():
        if not 1 <= int(wanted) <= len(known):
            raise ValueError(f"tasks must be a number from 1 to {len(known)}, the tasks of the data, got {wanted}")
        return set(random.Random(f"{seed}/tasks").sample(known, len(known))[: int(wanted)])
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"expected some of {', '.join(known)}")
            raise ValueError(f"tasks: the data has no task {name!r}: {hint}")
    return set(names)


def _read_jsonl(path: Path, limits: dict[Split, int]) -> tuple[Example, ...]:
    """Read rows with `task`, `output`, and `instruction` or `input`; `domain`, `source` and `split` may be there.

    Of each task and split the rows with the smallest hash are kept, so that a limit draws no order from the file.
    """
    examples = _held_out_for_validation(list(_rows(path)))
    kept: dict[tuple[str, Split], list[Example]] = defaultdict(list)
    for example in examples:
        if example.split in limits:
            kept[example.task, example.split].append(example)
    if not kept:
        raise ValueError(f"{path} has no examples of the splits {', '.join(limits)}: give a file with some")
    return tuple(
        example
        for (_, split), rows in sorted(kept.items())
        for example in sorted(rows, key=lambda example: _hash(example.prompt))[: limits[split]]
    )


def _rows(path: Path) -> Iterator[Example]:
    splits: dict[str, Split] = {}
    for where, row in read_objects(path):
        example = _example(row, where)
        if splits.setdefault(example.prompt, example.split) != example.split:
            raise ValueError(
                f"{where}: the same prompt stands in {splits[example.prompt]} and "
                f"{example.split}: leave one out, or the evaluation leaks"
            )
        yield example


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file, gzipped or not, each with where it stands: path and line.

    Raises ValueError for a file that is no text and for a line that is no object; empty lines are skipped.
    """
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding=ENCODING) if path.suffix == ".gz" else open(path, encoding=ENCODING) as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _object(line, where)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read after line {number} ({error}): write UTF-8, whole if gzip") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}): write one JSON object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is not an object: write one JSON object a line")
    return row


def prompt_fields(row: dict[str, Any], where: str) -> tuple[str, str]:
    """Return a row's instruction and input. Raises ValueError unless one of them is there, and both are texts."""
    instruction, text = ("" if row.get(key) is None else row[key] for key in ("instruction", "input"))
    if not isinstance(instruction, str) or not isinstance(text, str) or not instruction + text:
        raise ValueError(f"{where} has neither 'instruction' nor 'input': expected a text in one of them")
    return instruction, text


def _held_out_for_validation(examples: list[Example]) -> list[Example]:
    """Move a share of the training examples, chosen by their prompts' hashes, unless validation examples are named."""
    if any(example.split == "validation" for example in examples):
        return examples
    return [
        replace(example, split="validation")
        if example.split == "train" and _position(example.prompt) < VALIDATION_SHARE
        else example
        for example in examples
    ]


def _example(row: dict[str, Any], where: str) -> Example:
    for key in ("task", "output"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise ValueError(f"{where} has no {key!r}: expected a text")
    instruction, text = prompt_fields(row, where)
    example = Example(
        split="train",
        task=row["task"],
        domain=str(row.get("domain") or row["task"]),
        source=str(row.get("source") or ""),
        instruction=instruction,
        input=text,
        output=row["output"],
    )
    return replace(example, split=_split(row.get("split"), example.prompt, where))


def _split(named: Any, prompt: str, where: str) -> Split:
    if named is None:
        return "test" if _position(prompt) >= 1 - TEST_SHARE else "train"
    for split in get_args(Split):
        if named == split:
            return split  # type: ignore[no-any-return]
    raise ValueError(f"{where} has the split {named!r}: expected {', '.join(get_args(Split))}, or none")


def _position(prompt: str) -> float:
    """Return a prompt's place between 0 and 1, by its hash."""
    return int(_hash(prompt), 16) / 16**16


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
