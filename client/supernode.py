"""A node's SuperNode: Flower's, which takes the place of one that was killed at once, and asks for messages sooner.

    python -m client.supernode LOG ARGUMENTS...

ARGUMENTS are those of flower-supernode; LOG, to which the one before wrote, tells which node it was, and on which
host. Flower 1.41 takes a SuperNode that was killed for alive for a minute: its messages wait in vain, and another in
its place is refused (exit code 305). So this one first leaves in its name, as it would have done by itself at a
SIGTERM; but not for one of another host, which may be alive, as where a node's folder was copied. And Flower's pauses
are long: 3 s until it asks for a message again, which is after every reply, for no server is that fast, and a second
until it asks again for a part of a message that is on its way.
"""

import contextlib
import re
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import _parse_supernode_lifespan_config, flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

FIRST_PAUSE_SECONDS = 0.2
REPLY_PAUSE_SECONDS = 0.5  # Flower's, while a message is being answered
HOST = "SuperNode on host"  # what a log says of where its SuperNode ran
_NODE, _HOST = re.compile(rb"SuperNode ID: (\d+)"), re.compile(rf"{HOST} (\S+)".encode())


class Pauses:
    """Stands for `time` in Flower's loop: pauses begin short after each message, and double up to Flower's own."""

    def __init__(self) -> None:
        self._next_seconds = FIRST_PAUSE_SECONDS

    def sleep(self, seconds: float) -> None:
        """Pause, at most so long."""
        time.sleep(min(seconds, self._next_seconds))
        self._next_seconds = (
            FIRST_PAUSE_SECONDS if seconds <= REPLY_PAUSE_SECONDS else min(2 * self._next_seconds, seconds)
        )


def node_before(log: Path, host: str) -> int | None:
    """Return the number of the SuperNode that last wrote to a log; None where none did, or on another host."""
    number, where = None, b""
    with contextlib.suppress(FileNotFoundError), log.open("rb") as lines:
        for line in lines:
            if said := _HOST.search(line):
                where = said[1]
            elif said := _NODE.search(line):
                number = int(said[1])
    return number if where == host.encode() else None


def this_host() -> str:
    """Return what tells this machine, or container, from others."""
    identity = ""
    with contextlib.suppress(OSError):
        identity = Path("/etc/machine-id").read_text().strip()
    return f"{socket.gethostname()}/{identity}"


def leave_for(
    node: int, superlink: str, insecure: bool, root_certificates: bytes | str | None, keys: tuple[Any, Any] | None
) -> bool:
    """Tell a SuperLink that a node is gone, in its name; return whether it was there until now."""
    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperNode")]
    if keys is not None:
        interceptors.append(NodeAuthHttpInterceptor(*keys))
    with FleetHttpClient.from_server_address(superlink, insecure, root_certificates, interceptors) as client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node))
        except (httpx.HTTPError, RuntimeError):  # it left by itself, or nobody answers: Flower will say so
            return False
    return True


def main() -> None:
    """Take the place of the one before; run Flower's SuperNode."""
    log = Path(sys.argv[1])
    sys.argv = ["flower-supernode", *sys.argv[2:]]
    node = node_before(log, this_host())
    if node is not None:
        config = _parse_supernode_lifespan_config()
        known_by = config.root_certificates, config.authentication_keys
        if leave_for(node, config.server_address, config.insecure, *known_by):
            print(f"Node {node} was taken for alive, and has left", flush=True)
    print(f"{HOST} {this_host()}", flush=True)
    start_client_internal.time = Pauses()  # type: ignore[assignment, attr-defined]
    start_client_internal.pull_objects = partial(  # type: ignore[attr-defined]
        pull_objects, initial_backoff=FIRST_PAUSE_SECONDS / 2, backoff_cap=1.0
    )
    flower_supernode()


if __name__ == "__main__":
    main()
