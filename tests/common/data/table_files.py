"""Writes the same rows in every format."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

FORMATS = ("jsonl", "ndjson", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet")


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of a path's name; in CSV a list is a cell with JSON, and a missing value is empty."""
    name = path.name.removesuffix(".gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
        return path
    if name.endswith((".csv", ".tsv")):
        text = _csv(rows, "\t" if name.endswith(".tsv") else ",")
    elif name.endswith(".json"):
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _csv(rows: list[dict], delimiter: str) -> str:
    file = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, columns, delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
        )
    return file.getvalue()
