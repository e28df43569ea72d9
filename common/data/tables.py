"""Tables of Arrow: Parquet files, and data sets of the hub. Takes a second to import."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet

from common.data.formats import Rows, Table
from common.data.hub_name import HubName

BATCH_ROWS = 256  # that are in memory at a time
BUFFER_BYTES = 2**16


def open_parquet(path: Path) -> Table:
    """Open a Parquet file; its rows are streamed. Raises ValueError for a file that is none, or is damaged.

    By pyarrow: `datasets` refuses a file without rows, and takes seconds to begin with the first.
    """
    try:
        # Without these it reads the whole file ahead, and a row group at a time.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    features = datasets.Features.from_arrow_schema(file.schema_arrow)
    return Table(_numbered(_rows_of(file, path), features, str(path)), list(features))


def _rows_of(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in file.iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as Parquet ({_one_line(error)}): expected a whole file; write it again")


def open_hub(name: HubName) -> dict[str, Table]:
    """Open a data set of the hub, by split; later calls read it from the cache, without the network.

    It is downloaded as a whole, once, and read from disk as it is needed: a stream would be fetched by every process
    of a run again, and not work offline. Raises ValueError when it cannot be had.
    """
    try:
        splits = datasets.load_dataset(name.repository, name.subset or None, revision=name.revision or None)
    except Exception as error:  # of the network, the hub and the library alike
        raise ValueError(
            f"data {str(name)!r} is no file or directory here, and cannot be had from the hub "
            f"({_one_line(error)}): expected owner/name:subset@revision; check name and network, or give a path"
        ) from None
    return {
        split: Table(_numbered(table, table.features, f"{name}, {split}"), list(table.features))
        for split, table in splits.items()
    }


def _numbered(rows: Iterable[dict[str, Any]], features: Any, where: str) -> Rows:
    """Yield rows with their number; a class is its name, not its number."""
    classes = {key: kind for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(rows, start=1):
        yield f"{where}, row {number}", dict(_named(row, classes)) if classes else row


def _named(row: dict[str, Any], classes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        names = classes[key].names if key in classes else []
        yield key, names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
