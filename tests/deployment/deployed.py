"""A deployment on this machine for tests: a server and two nodes, each a `fedmops deploy` of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.host_socket import ask_health
from deployment import folder, node, run

LIMIT_SECONDS = 600.0  # everything takes a fraction of that on an idle machine
BARE_SERVER = Path(__file__).parent / "bare_server"  # it has what its image has (server/Dockerfile)
FEDMOPS = Path(sysconfig.get_path("scripts")) / "fedmops"


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines(path: Path) -> list[dict[str, Any]]:
    """Read a file's whole lines: the last may be on its way."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def simulate(directory: Path, words: list[str]) -> None:
    """Simulate an undisturbed run, on one thread as hosts do here."""
    simulated = subprocess.run(
        [FEDMOPS, "simulate", *words, f"run-directory={directory}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert simulated.returncode == 0, simulated.stderr


class Run:
    """A run that was submitted: what it says and what it writes."""

    def __init__(self, deployed: "Deployment", name: str, words: tuple[str, ...]) -> None:
        self.said_to = deployed.path / f"{name}.out"
        self._deployed, self._name = deployed, name
        with open(self.said_to, "wb") as said:
            self.submission = subprocess.Popen(
                [FEDMOPS, "deploy", "run", deployed.control, f"name={name}", *words],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "300"},
            )

    @property
    def said(self) -> str:
        return self.said_to.read_text()

    @property
    def directory(self) -> Path:
        (found,) = (self._deployed.path / "server" / "runs").glob(f"*-{self._name}")
        return found

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The rounds that are over; none before the run's directory is there."""
        found = list((self._deployed.path / "server" / "runs").glob(f"*-{self._name}/rounds.jsonl"))
        return lines(found[0]) if found else []

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return found

    def ends(self) -> int:
        """Wait for its end; return the exit code."""
        return self.submission.wait(LIMIT_SECONDS)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait while the run goes on."""

        def look() -> Any:
            assert self.submission.poll() is None, self.said
            return condition()

        return wait_until(look, what)

    def wait_for_round(self, number: int) -> None:
        """Wait until a round is over."""
        self.wait(lambda: self.rounds and self.rounds[-1]["round"] >= number, f"round {number} is over")

    def wait_until_back(self, client: int, after: int) -> int:
        """Wait for a round, later than `after`, in which a client trained; return its number."""

        def back() -> Any:
            trained = [row["round"] for row in lines(self.directory / "metrics.jsonl")
                       if row["phase"] == "train" and row["client"] == client and row["round"] > after]  # fmt: skip
            return trained[:1]

        return int(self.wait(back, f"client {client} trains again")[0])

    def check_whole(self, num_rounds: int) -> None:
        """No gap, nothing twice: in rounds, and in what every client told of each."""
        assert [row["round"] for row in self.rounds] == list(range(num_rounds + 1))
        told = [
            (row["round"], row["phase"], row["client"], row.get("task"))
            for row in lines(self.directory / "metrics.jsonl")
        ]
        assert len(told) == len(set(told))
        for row in self.rounds[1:]:
            trained = [key for key in told if key[:2] == (row["round"], "train")]
            assert len(trained) == row["num_clients_trained"]


class Deployment:
    """A server and two nodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        folder.init(path, "127.0.0.1", free_port(), 2)
        for number in range(2):
            settings = path / f"node-{number}" / "node.toml"
            settings.write_text(re.sub(r"port = \d+", f"port = {free_port()}", settings.read_text()))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def control(self) -> Path:
        return self.path / "control"

    def start(self, part: str) -> None:
        kind = part.partition("-")[0]
        bare = {"PYTHONPATH": str(BARE_SERVER)} if kind == "server" else {}
        with open(self.path / f"{part}.out", "ab") as said:
            self.processes[part] = subprocess.Popen(
                [FEDMOPS, "deploy", kind, self.path / part],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"} | bare,
            )

    def start_all(self) -> None:
        self.start("server")
        wait_until(lambda: "listens at" in self.said("server"), "the server listens")
        for number in range(2):
            self.start(f"node-{number}")
        self.wait_until_online()

    def wait_until_online(self) -> None:
        wait_until(lambda: self.num_online() == 2, "both nodes are online")

    def said(self, part: str) -> str:
        return (self.path / f"{part}.out").read_text()

    def num_online(self) -> int:
        return sum(row["status"] == "online" for row in run.nodes(self.control))

    def submit(self, name: str, *words: str) -> Run:
        return Run(self, name, words)

    def health(self, number: int) -> dict[str, Any]:
        return ask_health(node.host_socket(self.path / f"node-{number}"))

    def working_on(self, number: int) -> str | None:
        """Return what a node's host works on; None also where there is no host."""
        try:
            return self.health(number)["working_on"]  # type: ignore[no-any-return]
        except OSError:
            return None

    def node_port(self, number: int) -> int:
        return folder.read_node(self.path / f"node-{number}").port

    def pids(self, program: str, *words: str) -> list[int]:
        """Return the processes of a program of this deployment whose command line has these words."""
        pattern = ".*".join([program, *words])
        found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split() if self._is_ours(int(pid))]

    def _is_ours(self, pid: int) -> bool:
        try:
            return str(self.path).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def kill(self, program: str, *words: str, number: int = signal.SIGKILL) -> None:
        """Kill a program of this deployment."""
        pids = self.pids(program, *words)
        assert pids, f"no {program} runs"
        for pid in pids:
            os.kill(pid, number)

    def stop(self, *parts: str) -> None:
        """End these parts, or all."""
        for part in parts or self.processes:
            self.processes[part].send_signal(signal.SIGTERM)
        for part in parts or self.processes:
            self.processes[part].wait(60)
