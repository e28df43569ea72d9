"""The folder of a deployment: a part for the server, one for each node, one for who submits runs.

Each part is copied to its machine and holds no other's secret.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from common.own_settings import OWN_KEYS
from deployment.certificates import AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Authority, write_key, write_node_keys

SERVER, NODE, CONTROL = "server", "node", "control"
NODE_KEY, NODE_KEYS = "node.key", "nodes"
SUPERLINK = "deployment"  # the SuperLink's name in Flower's configuration
FIRST_NODE_PORT = 9094
HERE = ("localhost", "127.0.0.1")

SERVER_TOML = """\
# The server: where the SuperLink listens. Its one port serves nodes and who submits runs.
host = {host}
port = {port}
"""
NODE_TOML = """\
# A node: where its server is, and which client of how many it is.
superlink = {superlink}
partition-id = {number}
num-partitions = {num_nodes}
# Where this node's own processes meet, on this machine alone; two nodes on one machine need two.
port = {port}
# What its host may take of the machine's memory, mapped files aside; 0: no limit.
memory-gib = 0.0

# What this client has of its own. The keys are those of `fedmops simulate`: {keys}.
[settings]
# data = "/path/to/my.jsonl"
# device = "cuda"
# batch-size = 8
"""
CONTROL_TOML = """\
# Who submits runs: where the SuperLink is, and how many nodes take part.
superlink = {superlink}
num-nodes = {num_nodes}
"""


@dataclass(frozen=True)
class NodePart:
    """What a node's file says."""

    superlink: str
    partition_id: int
    num_partitions: int
    port: int
    settings: dict[str, Any]
    memory_gib: float = 0.0


@dataclass(frozen=True)
class ServerPart:
    """What the server's file says."""

    host: str
    port: int


@dataclass(frozen=True)
class ControlPart:
    """What the file of who submits runs says."""

    superlink: str
    num_nodes: int


def init(folder: Path, address: str, port: int, num_nodes: int) -> None:
    """Write a new folder. Raises ValueError where there is one."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder, or remove it to draw new keys")
    server, control = folder / SERVER, folder / CONTROL
    (server / NODE_KEYS).mkdir(parents=True)
    control.mkdir()
    superlink = json.dumps(f"{address}:{port}")
    authority = Authority()
    write_key(folder / AUTHORITY_KEY, authority.key, serialization.PrivateFormat.PKCS8)
    authority.write_server(server, list(dict.fromkeys([address, *HERE])))
    (server / f"{SERVER}.toml").write_text(SERVER_TOML.format(host=json.dumps("0.0.0.0"), port=port))
    for number in range(num_nodes):
        node = folder / f"{NODE}-{number}"
        node.mkdir()
        write_node_keys(node / NODE_KEY, server / NODE_KEYS / f"{NODE}-{number}.pub")
        (node / f"{NODE}.toml").write_text(
            NODE_TOML.format(
                superlink=superlink,
                number=number,
                num_nodes=num_nodes,
                port=FIRST_NODE_PORT + number,
                keys=", ".join(OWN_KEYS),
            )
        )
        authority.write_certificate(node)
    (control / f"{CONTROL}.toml").write_text(CONTROL_TOML.format(superlink=superlink, num_nodes=num_nodes))
    for part in (server, control):
        authority.write_certificate(part)
    for part in (folder, *folder.iterdir()):
        if part.is_dir():
            part.chmod(0o700)


def write_connection(part: Path, address: str) -> None:
    """Write Flower's configuration, which tells its command line where the SuperLink is; it wants absolute paths."""
    certificate = str((part / AUTHORITY_CERTIFICATE).resolve())
    (part / "config.toml").write_text(
        f"[superlink]\ndefault = {json.dumps(SUPERLINK)}\n[superlink.{SUPERLINK}]\naddress = {json.dumps(address)}\n"
        f"root-certificates = {json.dumps(certificate)}\n"
    )


def read_node(part: Path) -> NodePart:
    """Read a node's part. Raises ValueError for one that is none."""
    found = _read(part, NODE)
    try:
        node = NodePart(
            str(found["superlink"]),
            int(found["partition-id"]),
            int(found["num-partitions"]),
            int(found["port"]),
            dict(found.get("settings", {})),
            float(found.get("memory-gib", 0.0)),
        )
    except KeyError as error:
        raise ValueError(f"{part / NODE}.toml: {error.args[0]} is missing") from None
    for key in node.settings:
        if key not in OWN_KEYS:
            raise ValueError(
                f"{part / NODE}.toml: a node has no {key} of its own: expected one of {', '.join(OWN_KEYS)}"
            )
    return node


def read_server(part: Path) -> ServerPart:
    """Read the server's part. Raises ValueError for one that is none."""
    found = _read(part, SERVER)
    return ServerPart(str(found["host"]), int(found["port"]))


def read_control(part: Path) -> ControlPart:
    """Read the part of who submits runs. Raises ValueError for one that is none."""
    found = _read(part, CONTROL)
    return ControlPart(str(found["superlink"]), int(found["num-nodes"]))


def _read(part: Path, kind: str) -> dict[str, Any]:
    path = part / f"{kind}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{part} is no {kind}'s part of a deployment: `fedmops deploy init` writes one") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
