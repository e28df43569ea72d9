"""The server's machine: a SuperLink that the nodes and who submits runs reach, and what runs the ServerApp."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.flower_processes import Processes, is_healthy, run_flwr, wait_for_superlink
from deployment.certificates import AUTHORITY_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY
from deployment.folder import NODE_KEYS, SUPERLINK, ServerPart, read_server, write_connection
from deployment.sole import sole
from deployment.supervision import Program, Tell, look_after

DATABASE = "superlink.db"
SUPERLINK_NAME = "SuperLink"
LOOK_SECONDS, SILENT_SECONDS = 2.0, 8.0


def serve(part: Path, tell: Tell) -> None:
    """Run the SuperLink and what it needs until interrupted; nothing that was started survives."""
    part = part.resolve()
    server = read_server(part)
    certificate = part / AUTHORITY_CERTIFICATE
    superlink = Program(SUPERLINK_NAME, "flower-superlink", superlink_arguments(part, server), part / "superlink.log")
    # It runs the ServerApp; apart from the SuperLink, so that a run outlives a SuperLink's fall.
    arguments = ["--runtime-api-address", f"127.0.0.1:{server.port}", "--root-certificates", str(certificate)]
    superexec = Program("SuperExec", "flower-superexec", arguments, part / "superexec.log")
    with sole(part, tell), Processes(part) as processes:
        wait_for_superlink(superlink.start(processes), server.port, superlink.log, certificate)
        write_connection(part, f"127.0.0.1:{server.port}")
        registered = register_nodes(part)
        tell(f"the SuperLink listens at {server.host}:{server.port}; it knows {registered} nodes by their keys")
        superexec.start(processes)
        silent = _silent(lambda: is_healthy(server.port, root_certificate=certificate))
        look_after(processes, [superlink, superexec], tell, silent)


def superlink_arguments(part: Path, server: ServerPart) -> list[str]:
    """Return what the SuperLink is called with."""
    return [
        *("--host", server.host, "--port", str(server.port)),
        *("--isolation", "process", "--database", str(part / DATABASE)),
        *("--ssl-ca-certfile", str(part / AUTHORITY_CERTIFICATE)),
        *("--ssl-certfile", str(part / SERVER_CERTIFICATE), "--ssl-keyfile", str(part / SERVER_KEY)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]


def register_nodes(part: Path) -> int:
    """Tell the SuperLink the nodes' public keys, those that it does not know yet; return how many there are."""
    keys = sorted((part / NODE_KEYS).glob("*.pub"))
    for key in keys:
        done = run_flwr(part, ["supernode", "register", str(key), SUPERLINK, "--name", key.stem, "--format", "json"])
        if not _is_registered(done):
            raise RuntimeError(f"{key.name} was not registered: {(done.stdout + done.stderr).strip()}")
    return len(keys)


def _is_registered(done: subprocess.CompletedProcess[str]) -> bool:
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {}
    return bool(answer.get("success")) or "already in use" in done.stdout + done.stderr


def _silent(is_up: Callable[[], bool]) -> Callable[[], Sequence[str]]:
    """Tell when a SuperLink that was up answers no more: one that was asked to end may take a minute for it.

    A run whose ServerApp cannot reach it for a minute is lost.
    """
    heard: float | None = None  # None until it is up
    looked = 0.0

    def look() -> Sequence[str]:
        nonlocal heard, looked
        now = time.monotonic()
        if now < looked + LOOK_SECONDS:
            return ()
        looked = now
        if is_up():
            heard = now
        elif heard is not None and now > heard + SILENT_SECONDS:
            heard = None
            return (SUPERLINK_NAME,)
        return ()

    return look
