"""Files that are whole at all times."""

import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new one and never a part.

    Raises OSError where there is no room; the old one stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a machine that falls leaves an empty file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def replace_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value as an indented JSON file, in the same way."""
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())
