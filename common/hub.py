"""A backbone's files on this machine: a directory as it is, or what the hub has under an id. Imports no torch."""

import logging
from functools import cache
from pathlib import Path

# What a decoder needs: no weights in other formats, no pictures.
WEIGHTS = "*.safetensors"
PATTERNS = ["*.json", "*.model", "*.txt", "*.jinja"]

# A child of Flower's logger, so that it is shown where the client runs.
log = logging.getLogger("flwr.fedmops")


@cache
def local_directory(source: str, weights: bool = True) -> Path:
    """Return the directory of a backbone's files, downloaded or found in the hub's cache for `owner/name[@revision]`.

    `weights=False` leaves the weights on the hub. With HF_HUB_OFFLINE=1 only the cache is looked at. Raises ValueError,
    in one line, where the files cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download  # takes half a second, which only hub ids need
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = source.partition("@")
    try:
        wanted = [*PATTERNS, WEIGHTS] if weights else PATTERNS
        # Told so, it also takes a commit of which an older version cached no list of files.
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=wanted, local_files_only=is_offline_mode()
        )
        directory = Path(found)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"backbone {source!r} cannot be had from the hub ({reason[:300]}): check the id and the revision, or "
            "give a directory"
        ) from None
    if not revision:
        log.info("%s is at commit %s: write %s@%s to stay with it", name, directory.name, name, directory.name)
    return directory
