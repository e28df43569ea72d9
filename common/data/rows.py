"""From a row to an example, by a mapping."""

import json
from dataclasses import replace
from typing import Any, get_args

from common.data.bad_row import BadRowError
from common.data.conversation import conversation
from common.data.formats import Row
from common.data.mappings import Mapping
from common.data.multiple_choice import choices_of, picked, with_options
from common.data.prompt_hash import position
from common.example import Example, Split

# Where a file names no splits, the examples' prompts decide by their hash.
TEST_SHARE = 0.2


def prompt_fields(
    row: Row, where: str, instruction: str = "instruction", text: str = "input", numbers: bool = False
) -> tuple[str, str]:
    """Return a row's instruction and input. Raises ValueError unless one of them is there, and both are texts."""
    found = tuple(read_text(row, key, where, numbers) for key in (instruction, text))
    if not any(found):
        raise BadRowError(
            where, "no prompt", f"has neither {instruction!r} nor {text!r}: expected a text in one of them; add it"
        )
    return found[0], found[1]


def example_of(row: Row, mapping: Mapping, where: str, task: str, split: Split | None) -> Example:
    """Return a row's example; `task` and `split` are those of a row that names none (no split: by the prompt's hash).

    Raises BadRowError for a row that is no example.
    """
    column = {key: _column(row, names) for key, names in mapping.columns.items()}
    row = {**row, **{f"'{key}'": text for key, text in mapping.constants.items()}}
    column |= {key: f"'{key}'" for key in mapping.constants}
    numbers = not mapping.name
    turns: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    if "messages" in column:
        turns, instruction, output = conversation(_parsed(row.get(column["messages"])), where)
        text = ""
    else:
        instruction, text = prompt_fields(row, where, column["instruction"], column["input"], numbers)
        choices, labels = choices_of(_parsed(row.get(column["choices"])), where)
        if choices:
            output = picked(row.get(column["output"]), choices, labels, where, column["output"])
            text = with_options(text, choices) if mapping.name == "multiple-choice" else text
        else:
            output = _answer(row, column["output"], where, numbers)
    named = read_text(row, column["task"], where, numbers)
    if not named and mapping.needs_task:
        raise BadRowError(where, "no task", f"has no {column['task']!r}: expected a text; add it")
    example = Example(
        split="train",
        task=named or task,
        domain=str(row.get(column["domain"]) or named or task),
        source=str(row.get(column["source"]) or ""),
        instruction=instruction,
        input=text,
        output=output,
        choices=choices,
        turns=turns,
    )
    _check_unicode(example, where)
    return replace(example, split=_split(row.get(column["split"]), split, example.prompt, where))


def read_text(row: Row, column: str, where: str, numbers: bool = False) -> str:
    """Return a column's text, "" where it is not there. Raises BadRowError for what is no text, nor a wanted number."""
    value = row.get(column)
    if value is None:
        return ""
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        shown = f"{value!r:.40}"
        raise BadRowError(where, f"no text in {column!r}", f"has {column!r} {shown}: expected a text; put it in quotes")
    return value


def _column(row: Row, names: tuple[str, ...]) -> str:
    """Return the first of some columns that is there, or the first of all."""
    if len(names) < 2:
        return names[0] if names else ""
    return next((name for name in names if row.get(name) is not None), names[0])


def _answer(row: Row, column: str, where: str, numbers: bool) -> str:
    if isinstance(row.get(column), list) and row[column]:  # Super-NaturalInstructions: all right answers
        row = {column: row[column][0]}
    output = read_text(row, column, where, numbers)
    if not output:
        raise BadRowError(where, "no answer", f"has no {column!r}: expected a text; add it")
    return output


def _parsed(value: Any) -> Any:
    """Read a list that a cell of a CSV file holds as JSON; anything else stays as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _check_unicode(example: Example, where: str) -> None:
    try:
        "".join((example.prompt, example.output, example.task, example.domain, example.source)).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        said = f"has half a character, {half!r}: expected whole Unicode; write it again"
        raise BadRowError(where, "half a character", said) from None


def _split(named: Any, of_table: Split | None, prompt: str, where: str) -> Split:
    if named is None:
        return of_table or ("test" if position(prompt) >= 1 - TEST_SHARE else "train")
    for split in get_args(Split):
        if named == split:
            return split  # type: ignore[no-any-return]
    expected = ", ".join(get_args(Split))
    raise BadRowError(
        where, "an unknown split", f"has the split {named!r:.40}: expected {expected}, or none; rename it"
    )
