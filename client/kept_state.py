"""What a client keeps over a whole run, such as int8's rounding errors, on a disk: it outlives the client's process."""

import logging
from pathlib import Path

from flwr.app import RecordDict

from client.host_socket import pack_records, unpack_records
from common.atomic_file import replace_file

log = logging.getLogger("flwr.fedmops")

SUFFIX = ".state"


def read_state(path: Path) -> RecordDict:
    """Read what was kept; nothing where nothing was, and, with a warning, where it is damaged."""
    try:
        return unpack_records(path.read_bytes()) if path.is_file() else RecordDict()
    except Exception as error:
        log.warning("what this client kept for the run is damaged and left out: %s", error)
        return RecordDict()


def write_state(path: Path, state: RecordDict) -> str | None:
    """Replace what is kept; return why that failed, or None: a full disk ends no run."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, pack_records(state))
    except OSError as error:
        log.warning("what this client keeps for the run is not on disk (%s): a restart would lose it", error)
        return str(error)
    return None
