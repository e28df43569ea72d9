"""What a client has of its own beside a run's settings: its data, its device, how it compresses the backbone."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.backbone_source import BUILT_IN
from common.config import OWN_PARTITION, Config, Value, read_config, unknown_key_message

# All else must be the same for all, or their updates do not belong together.
OWN_KEYS = (
    "data",
    "columns",
    "skip-bad-rows",
    "backbone",
    "quantization",
    "compute-dtype",
    "device",
    "gpu-memory-fraction",
    "device-map",
    "prefix-cache-gib",
    "batch-size",
    "pass-tokens",
    "max-sequence-tokens",
)
NUMBER_KEYS = ("partition-id", "num-partitions")  # who a node is; Flower's simulation sets them itself
HOST_KEY = "host-socket"  # where the process listens that keeps a node's backbone: see client/host.py


def own_config(run_config: Mapping[str, Value], node_config: Mapping[str, Value]) -> Config:
    """Return a client's configuration: the run's, then what its own table of the file `clients` says, then its node.

    A client with data of its own owns all of it. Raises ValueError for a key that clients may not differ in.
    """
    number = int(node_config["partition-id"])
    of_node = {key: value for key, value in node_config.items() if key not in (*NUMBER_KEYS, HOST_KEY)}
    _check_keys(of_node, run_config, "the node's configuration")
    own = {**read_clients(run_config).get(number, {}), **of_node}
    if "data" in own:
        own["partition"] = OWN_PARTITION
    try:
        return read_config({**run_config, **own, "clients": ""})
    except ValueError as error:
        raise ValueError(f"client {number}: {error}" if own else str(error)) from None


def read_clients(run_config: Mapping[str, Value]) -> dict[int, dict[str, Any]]:
    """Read the file that `clients` names, a table for each client that differs: `[2]`, then `device = "cpu"`.

    Raises ValueError, naming the table, for one that is no client's and for a key that clients may not differ in.
    """
    name = run_config.get("clients", "")
    if not name:
        return {}
    path = Path(str(name))
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"clients {name!r} is no file: give the path of a TOML file with a table for each") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    count = int(run_config["num-clients"])
    for client, own in tables.items():
        if not client.isdecimal() or int(client) >= count or not isinstance(own, dict):
            raise ValueError(f"{path}: [{client}] must be a table of a client, a number from 0 to {count - 1}")
        _check_keys(own, run_config, f"{path}, [{client}]")
    return {int(client): _beside(path, own) for client, own in tables.items()}


def _beside(path: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Take paths as they stand beside the file, wherever the client's process works."""
    found = {key: path.parent / str(own[key]) for key in ("data", "backbone") if own.get(key, BUILT_IN) != BUILT_IN}
    return own | {key: str(place.resolve()) for key, place in found.items() if place.exists()}


def _check_keys(own: Mapping[str, Any], run_config: Mapping[str, Value], where: str) -> None:
    for key in own:
        if key in run_config and key not in OWN_KEYS:
            raise ValueError(
                f"{where}: {key} must be the same for all clients, who may differ in {', '.join(OWN_KEYS)}: set it for "
                "the run"
            )
        if key not in OWN_KEYS:
            raise ValueError(f"{where}: {unknown_key_message(key, list(OWN_KEYS))}")
