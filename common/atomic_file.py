"""Files that are whole at all times."""

import json
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new one and never a part."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def replace_json(path: Path, value: dict[str, Any]) -> None:
    """Write a value as an indented JSON file, in the same way."""
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())
