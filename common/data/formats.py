"""Rows of a file, one at a time, each with where it stands: JSONL, JSON, CSV, TSV (each also .gz) and Parquet."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.data.bad_row import BadRowError

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | BadRowError]]  # a row or what is wrong with it, and where it stands

ENCODING = "utf-8-sig"  # UTF-8, with or without the mark that some programs put first
TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_FORMATS, *(f"{suffix}.gz" for suffix in TEXT_FORMATS), ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows, and the columns that all of them have; None where each row names its own, as in JSON."""

    rows: Rows
    columns: list[str] | None = None


def suffix_of(path: Path) -> str:
    """Return the known ending of a file's name, or "" where the format is unknown."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def stem_of(path: Path) -> str:
    """Return a file's name without its known ending."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def open_table(path: Path) -> Table:
    """Open a file of a known format. Raises ValueError, now or while rows are read, for what is no such file."""
    suffix = suffix_of(path).removesuffix(".gz")
    if suffix in (".jsonl", ".ndjson"):
        return Table(json_lines(path))
    if suffix == ".json":
        from common.data.json_file import json_rows

        return Table(json_rows(path))
    if suffix in (".csv", ".tsv"):
        return _open_csv(path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        from common.data.tables import open_parquet  # takes a second to import

        return open_parquet(path)
    raise ValueError(f"{path} is of no known format: expected a name that ends in {', '.join(SUFFIXES)}; rename it")


def read_objects(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a JSONL file, gzipped or not, each with where it stands: path and line.

    Raises ValueError for a file that is no text and for a line that is no object; empty lines are skipped.
    """
    for where, row in json_lines(path):
        if isinstance(row, BadRowError):
            raise row
        yield where, row


def json_lines(path: Path) -> Rows:
    """Yield a row for each line that is not empty."""
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, _object(line.decode(ENCODING), where)
            except UnicodeDecodeError as error:
                yield where, BadRowError(where, "no UTF-8", f"is not UTF-8 ({error.reason}): save the file as UTF-8")
            except BadRowError as error:
                yield where, error


def _object(line: str, where: str) -> Row:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRowError(
            where, "no JSON", f"is not JSON ({error.msg} at column {error.colno}): write one JSON object a line"
        ) from None
    except (RecursionError, ValueError):  # lists in lists in lists; numbers of thousands of digits
        raise BadRowError(
            where, "no JSON", "is not JSON that can be read: write one plain JSON object a line"
        ) from None
    if not isinstance(row, dict):
        raise BadRowError(where, "no object", "is not an object: write one JSON object a line")
    return row


def open_text(path: Path) -> IO[str]:
    """Open a text file, gzipped or not."""
    return io.TextIOWrapper(_open(path), encoding=ENCODING)


def unreadable(path: Path, number: int, error: Exception) -> ValueError:
    """Return the error for a file whose bytes cannot be read."""
    return ValueError(f"{path} cannot be read after line {number} ({error}): write it again, whole if gzip")


UNREADABLE = (EOFError, gzip.BadGzipFile, zlib.error)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with closing(_open(path)) as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except UNREADABLE as error:
        raise unreadable(path, number, error) from None


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            yield line.decode(ENCODING if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is not UTF-8 ({error.reason}): save the file as UTF-8") from None


def _open_csv(path: Path, delimiter: str) -> Table:
    reader = csv.reader(_text_lines(path), delimiter=delimiter, strict=True)
    records = _records(reader, path)
    _, header = next(records, ("", []))
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}, line 1 names the column {twice!r} twice: give every column a name of its own")
    return Table(_csv_rows(records, header), header)


def _csv_rows(records: Iterator[tuple[str, list[str]]], header: list[str]) -> Rows:
    for where, cells in records:
        if len(cells) == len(header):
            # An empty cell is a value that is not there.
            yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}
        else:
            said = f"has {len(cells)} cells: expected {len(header)} as in the first line, quote cells with separators"
            yield where, BadRowError(where, "another number of cells than the header", said)


def _records(reader: Any, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield records with the line on which each begins. A broken quote ends the reading: nothing after it is sure."""
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"{where} is not CSV ({error}): expected quotes that close, doubled within a cell; mend the quotes"
            ) from None
        if cells:
            yield where, cells
