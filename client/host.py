"""The host of a node: a process that keeps backbone, data and states, and answers the messages of its runs.

    python -m client.host DIRECTORY [--memory-gib N]

In a deployment Flower starts a process for each message; it hands the message over by the socket in DIRECTORY, which
its owner alone may open. Messages are answered one at a time, in the order in which they came. What a client has to
keep over a whole run, such as int8's rounding errors, lies in DIRECTORY/state and survives the host. At SIGTERM the
host ends when the message that it works on is answered. With --memory-gib a message that would need more of the
machine's memory fails by name, where the system would end the host, or another program in its place.
"""

import argparse
import logging
import os
import resource
import select
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Context, MessageType, RecordDict

from client.host_socket import HEALTH, SOCKET, pack_records, receive_frame, send_frame, unpack_records
from client.kept_state import SUFFIX, read_state, write_state

log = logging.getLogger("flwr.fedmops.host")

STATES = "state"
LOOK_SECONDS = 1.0  # between looks at whether who asked still waits
KEPT_STATES = 4  # of the latest runs
# A run with the same backbone finds it loaded.
BACKBONE_KEYS = ("backbone", "quantization", "device", "compute-dtype", "device-map")


class Host:
    """Answers messages, one at a time, for one run at a time."""

    def __init__(self, directory: Path) -> None:
        self.health: dict[str, Any] = {
            "pid": os.getpid(),
            "run_id": None,
            "working_on": None,
            "waiting": 0,
            "answered": 0,
            "failed": 0,
            "deserted": 0,
            "backbone_loads": 0,
            "unsaved": 0,  # times that what a client keeps for the run did not fit on the disk
        }
        self._states = directory / STATES
        self._states.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._worker = ThreadPoolExecutor(max_workers=1)  # torch's threads belong to the one that calls it
        self._lock = threading.Lock()
        self._state_path = self._states
        self._state = RecordDict()
        self._backbone: list[Any] = []

    def submit(self, about: Mapping[str, Any], body: bytes) -> "Future[RecordDict]":
        """Queue a message. Raises RuntimeError while messages of another run wait or are answered."""
        with self._lock:
            run_id = about["run_id"]
            if self.health["waiting"] and run_id != self.health["run_id"]:
                raise RuntimeError(
                    f"this node works for run {self.health['run_id']}: wait for its end, or stop it, and start again"
                )
            if run_id != self.health["run_id"]:
                self.health["run_id"] = run_id
                self._worker.submit(self._begin, about)
            self.health["waiting"] += 1
        return self._worker.submit(self._answer, about, body)

    def withdraw(self, answer: "Future[RecordDict]") -> None:
        """Take a message back that nobody waits for any more, unless it is being answered."""
        if answer.cancel():
            with self._lock:
                self.health["waiting"] -= 1

    def stop(self) -> None:
        """End when the message that is being answered is."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self, about: Mapping[str, Any]) -> None:
        """Forget what the run before had of its own; find the state that this one left here, if it did."""
        run_id, settings = about["run_id"], about["run_config"] | about["node_config"]
        backbone = [settings.get(key) for key in BACKBONE_KEYS]
        import_module("client.answers").forget(with_backbone=backbone != self._backbone)
        self._backbone = backbone
        self._state_path = self._path_of(about)
        self._state = read_state(self._state_path)
        newest_first = sorted(self._states.glob(f"*{SUFFIX}"), key=lambda state: -state.stat().st_mtime)
        for old in newest_first[KEPT_STATES:]:
            old.unlink(missing_ok=True)
        log.info("run %d begins", run_id)

    def _path_of(self, about: Mapping[str, Any]) -> Path:
        """Return where the run's state lies; a run that is resumed has another number, but its old directory."""
        run = sha256(str(about["run_config"].get("run-directory", "")).encode()).hexdigest()[:16]
        path = self._states / f"{run}-{about['run_id']}{SUFFIX}"
        if about["run_config"].get("resume") and not path.exists():
            earlier = sorted(self._states.glob(f"{run}-*{SUFFIX}"), key=lambda state: state.stat().st_mtime)
            if earlier:
                earlier[-1].rename(path)
        return path

    def _answer(self, about: Mapping[str, Any], body: bytes) -> RecordDict:
        started = time.monotonic()
        self.health["working_on"] = about["message_type"]
        answers = import_module("client.answers")
        context = Context(about["run_id"], 0, dict(about["node_config"]), self._state, dict(about["run_config"]))
        try:
            content: RecordDict = answers.answer(about["message_type"], unpack_records(body), context)
            if self._state and about["message_type"] == MessageType.TRAIN:
                self.health["unsaved"] += write_state(self._state_path, self._state) is not None
            self.health["answered"] += 1
            return content
        except BaseException as error:
            self.health["failed"] += 1
            log.warning("%s failed: %s", about["message_type"], error)
            raise
        finally:
            self.health["working_on"] = None
            self.health["backbone_loads"] = answers.load_backbone.cache_info().misses
            log.info("%s took %.1f s", about["message_type"], time.monotonic() - started)
            with self._lock:
                self.health["waiting"] -= 1


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    host: Host


class _Handler(socketserver.BaseRequestHandler):
    server: _Server
    request: socket.socket

    def handle(self) -> None:
        """Read a message, wait for its answer, send it; take notice when who asked ends without taking leave."""
        try:
            about, body = receive_frame(self.request)
            if about["message_type"] == HEALTH:
                send_frame(self.request, self.server.host.health)
                return
            try:
                content = self._awaited(self.server.host.submit(about, body))
            except Exception as error:
                send_frame(self.request, {"error": str(error) or type(error).__name__})
            else:
                send_frame(self.request, {}, pack_records(content))
            receive_frame(self.request)  # the leave
        except OSError:
            self._desert()

    def _awaited(self, answer: "Future[RecordDict]") -> RecordDict:
        while True:
            try:
                return answer.result(timeout=LOOK_SECONDS)
            except NotYet:
                if answer.done():  # a time limit within the answer
                    raise
            readable, _, _ = select.select([self.request], [], [], 0.0)
            if readable and not self.request.recv(1, socket.MSG_PEEK):
                self.server.host.withdraw(answer)
                raise BrokenPipeError

    def _desert(self) -> None:
        self.server.host.health["deserted"] += 1
        log.warning("a ClientApp was killed before it had sent its answer on")


def serve(directory: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    os.umask(0o077)
    host = Host(directory)
    with _Server(str(path), _Handler) as server:
        server.host = host

        def end(*_: object) -> None:
            threading.Thread(target=server.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        log.info("listening at %s", path)
        server.serve_forever(poll_interval=0.2)
        host.stop()
    path.unlink(missing_ok=True)


def limit_memory(gib: float) -> None:
    """Let no allocation of this process succeed beyond a limit; files mapped into memory, such as weights, are free."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--memory-gib", type=float, default=0.0, help="0: no limit")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.INFO)
    if arguments.memory_gib:
        limit_memory(arguments.memory_gib)
    serve(arguments.directory)


if __name__ == "__main__":
    main()
