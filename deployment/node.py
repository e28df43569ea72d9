"""A node's machine: the host, which keeps the backbone, and the SuperNode, which brings it the server's messages."""

import json
from pathlib import Path

from client.host_socket import SOCKET
from common.flower_processes import Processes
from common.own_settings import HOST_KEY
from deployment.certificates import AUTHORITY_CERTIFICATE
from deployment.deafness import deafness
from deployment.folder import NODE_KEY, NodePart, read_node
from deployment.sole import sole
from deployment.supervision import Program, Tell, look_after

HOST, SUPERNODE = "host", "SuperNode"
LONGEST_SOCKET_PATH = 107  # bytes, of Linux


def serve(part: Path, tell: Tell) -> None:
    """Run host and SuperNode until interrupted; nothing that was started survives."""
    part = part.resolve()
    node = read_node(part)
    socket = host_socket(part)
    if len(str(socket).encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"{socket} is longer than {LONGEST_SOCKET_PATH} bytes: move the folder to a shorter path")
    host = Program(HOST, "python", host_arguments(part, node), part / "host.log")
    log = part / "supernode.log"
    arguments = ["-m", "client.supernode", str(log), *supernode_arguments(part, node)]
    supernode = Program(SUPERNODE, "python", arguments, log)
    with sole(part, tell), Processes(part) as processes:
        tell(f"client {node.partition_id} of {node.num_partitions}, for the SuperLink at {node.superlink}")
        look_after(processes, [host, supernode], tell, deafness(socket, supernode))


def host_socket(part: Path) -> Path:
    """Return where a node's host listens."""
    return part / "host" / SOCKET


def host_arguments(part: Path, node: NodePart) -> list[str]:
    """Return what Python is called with for the host."""
    return ["-m", "client.host", str(host_socket(part).parent), "--memory-gib", str(node.memory_gib)]


def supernode_arguments(part: Path, node: NodePart) -> list[str]:
    """Return what the SuperNode is called with."""
    own = {
        "partition-id": node.partition_id,
        "num-partitions": node.num_partitions,
        HOST_KEY: str(host_socket(part)),
        **node.settings,
    }
    return [
        *("--superlink", node.superlink, "--root-certificates", str(part / AUTHORITY_CERTIFICATE)),
        *("--auth-supernode-private-key", str(part / NODE_KEY)),
        *("--host", "127.0.0.1", "--port", str(node.port)),
        *("--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in own.items())),
    ]
