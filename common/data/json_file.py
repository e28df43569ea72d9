"""Rows of a JSON file: a list, an object that holds one, or a task file of Super-NaturalInstructions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.data.bad_row import BadRowError
from common.data.formats import UNREADABLE, Row, Rows, json_lines, open_text, stem_of, unreadable

CHUNK = 1 << 16  # characters that are read at a time


def json_rows(path: Path) -> Rows:
    """Yield the objects of a JSON file. A list is read row by row; an object that holds it as a whole.

    Raises ValueError for what is no JSON: after a fault within a list nobody knows where the next row begins.
    """
    try:
        with open_text(path) as file:
            first = _first_line(file)
        if first.lstrip().startswith("["):
            with open_text(path) as file:
                yield from _rows(_list_items(file, path), path, "row")
        elif _is_object(first):  # an object on the first line, and perhaps more: JSON lines under another name
            lines = list(_two(json_lines(path)))
            if len(lines) == 2:
                yield from json_lines(path)
            else:
                yield from _rows_of_object(json.loads(first), path)
        elif first:
            with open_text(path) as file:
                yield from _rows_of_object(json.load(file), path)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno} is not JSON ({error.msg}): expected one list of objects, or one object that "
            "holds it; mend the line"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}): save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: expected a list of plain objects; flatten it") from None
    except UNREADABLE as error:
        raise unreadable(path, 0, error) from None


def _first_line(file: IO[str]) -> str:
    """Return the first line that is not empty; of a long one the beginning only tells a list."""
    for line in iter(lambda: file.readline(CHUNK), ""):
        if line.strip():
            return line if line.lstrip().startswith("[") or line.endswith("\n") else line + file.readline()
    return ""


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _two(rows: Rows) -> Iterator[Any]:
    for _, row in zip(range(2), rows, strict=False):
        yield row


def _rows(items: Iterator[tuple[int, Any]], path: Path, what: str) -> Rows:
    for number, (line, item) in enumerate(items, start=1):
        where = f"{path}, {what} {number}" + (f" (line {line})" if line else "")
        if isinstance(item, dict):
            yield where, item
        else:
            yield where, BadRowError(where, "no object", "is not an object: write one object a row")


def _rows_of_object(content: Any, path: Path) -> Rows:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {content!r:.40}: expected a list of objects; write one")
    if "Definition" in content or "Instances" in content:
        yield from _rows_of_task(content, path)
        return
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if len(lists) != 1:
        found = f"the lists {', '.join(lists)}" if lists else f"no list, but {', '.join(content) or 'nothing'}"
        raise ValueError(f"{path} holds {found}: expected one list of rows; write one file for each list")
    yield from _rows(((0, item) for item in content[lists[0]]), path, f"row of {lists[0]!r}")


def _rows_of_task(content: Row, path: Path) -> Rows:
    """Yield the instances of a task file under the columns that its rows have on the hub (task_name, inputs, ...)."""
    definition, instances = _first(content.get("Definition")), content.get("Instances")
    if not isinstance(definition, str) or not definition or not isinstance(instances, list):
        raise ValueError(
            f"{path} is no task of Super-NaturalInstructions: expected 'Definition', a list of one text, and "
            "'Instances', a list of objects; add what is missing"
        )
    domain = _first(content.get("Domains")) or _first(content.get("Categories"))
    for where, row in _rows(((0, item) for item in instances), path, "instance"):
        if isinstance(row, BadRowError):
            yield where, row
            continue
        known = {"task_name": stem_of(path), "domain": domain, "definition": definition}
        yield where, known | {"inputs": row.get("input"), "targets": row.get("output"), "split": row.get("split")}


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _list_items(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of one JSON list, each with its line; no more than an item and a chunk is held at a time."""
    reader = _Reader(file)
    reader.next_character()
    reader.position += 1  # [
    if reader.next_character() == "]":
        reader.position += 1
    else:
        while True:
            reader.next_character()
            yield reader.line, reader.value()
            mark = reader.next_character()
            reader.position += 1
            if mark == "]":
                break
            if mark != ",":
                raise _broken(path, reader.line, "',' or ']' is missing")
    if reader.next_character():
        raise _broken(path, reader.line, "there is text after the list")


def _broken(path: Path, line: int, fault: str) -> ValueError:
    return ValueError(f"{path}, line {line} is not JSON ({fault}): expected one list of objects; mend the line")


class _Reader:
    """A text that is read as far as needed: `buffer` from `position` on is what comes next, on `line`."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self.buffer, self.position, self.line, self.ended = "", 0, 1, False

    def next_character(self) -> str:
        """Skip white space; return the next character without taking it, "" at the end."""
        while True:
            rest = len(self.buffer)
            start = self.position
            while start < rest and self.buffer[start] in " \t\r\n":
                start += 1
            self.line += self.buffer.count("\n", self.position, start)
            self.position = start
            if start < rest:
                return self.buffer[start]
            if self.ended:
                return ""
            self._grow(CHUNK)

    def value(self) -> Any:
        """Take one JSON value. Raises JSONDecodeError with the line in the file."""
        size = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self.buffer, self.position)
                if end < len(self.buffer) or self.ended:  # else a number may go on in the next chunk
                    self.line += self.buffer.count("\n", self.position, end)
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    line = self.line + self.buffer.count("\n", self.position, error.pos)
                    error.lineno = line
                    raise
            self._grow(size)
            size *= 2  # so that a long item is not scanned too often

    def _grow(self, size: int) -> None:
        more = self._file.read(size)
        self.ended = not more
        self.buffer, self.position = self.buffer[self.position :] + more, 0
