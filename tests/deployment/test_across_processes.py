"""A deployment on this machine with Flower's real processes, TLS and keys: what it gives, and what it survives."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.host_socket import ask_health
from common.flower_processes import Processes
from deployment import folder, node, run
from deployment.certificates import Authority, write_node_keys
from simulations.cli import main
from tests.tiny import backbone_on_disk

pytestmark = [pytest.mark.deploy, pytest.mark.xdist_group("deploy")]

LIMIT_SECONDS = 400.0  # everything takes a fraction of that on an idle machine
TIMEOUT_SECONDS = 45


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


class Deployment:
    """A server and its nodes, each a `fedmops deploy` of its own."""

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

    def start(self, kind: str, part: str) -> None:
        with open(self.path / f"{part}.out", "ab") as said:
            self.processes[part] = subprocess.Popen(
                [Path(sysconfig.get_path("scripts")) / "fedmops", "deploy", kind, self.path / part],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"},
            )

    def said(self, part: str) -> str:
        return (self.path / f"{part}.out").read_text()

    def num_online(self) -> int:
        return sum(row["status"] == "online" for row in run.nodes(self.control))

    def submit(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.path / "run.out", "wb") as said:
            return subprocess.Popen(
                [Path(sysconfig.get_path("scripts")) / "fedmops", "deploy", "run", self.control, *words],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "300"},
            )

    def health(self, number: int) -> dict[str, Any]:
        return ask_health(node.host_socket(self.path / f"node-{number}"))

    def run_directory(self, name: str) -> Path:
        (found,) = (self.path / "server" / "runs").glob(f"*-{name}")
        return found

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(60)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return backbone_on_disk(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def settings(backbone: str) -> list[str]:
    return [
        f"backbone={backbone}",
        *("quantization=none", "compute-dtype=float32", "device=cpu", "num-clients=2", "prefix-cache-gib=0"),
        *("train-examples=4", "eval-examples=2", "num-experts=3", "tokens-per-expert=2", "gate-hidden-size=8"),
        *("batch-size=4", f"round-timeout-seconds={TIMEOUT_SECONDS}", "wire-format=int8"),
    ]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    path = Path("/tmp") / f"fedmops-test-{os.getpid()}"  # the path of a UNIX socket is short
    deployed = Deployment(path)
    try:
        deployed.start("server", "server")
        wait_until(lambda: "listens at" in deployed.said("server"), "the server listens")
        for number in range(2):
            deployed.start("node", f"node-{number}")
        wait_until(lambda: deployed.num_online() == 2, "both nodes are online")
        yield deployed
    finally:
        deployed.stop()
        shutil.rmtree(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_gives_what_a_simulation_gives_and_loads_each_backbone_once(
    deployment: Deployment, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*settings, "num-rounds=2", "num-local-steps=2"]
    submission = deployment.submit(*words, "name=first")
    assert submission.wait(LIMIT_SECONDS) == 0
    said = (deployment.path / "run.out").read_text()
    assert "round 2 of 2" in said and "client 1: perplexity" in said

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["fedmops", "simulate", *words, f"run-directory={tmp_path / 'simulated'}"])
    with pytest.raises(SystemExit):
        main()
    deployed = json.loads((deployment.run_directory("first") / "result.json").read_text())
    simulated = json.loads((tmp_path / "simulated" / "result.json").read_text())
    for mine, theirs in zip(deployed["clients"], simulated["clients"], strict=True):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)  # other numbers of threads
        assert mine["backbone_perplexity"] == pytest.approx(theirs["backbone_perplexity"], rel=1e-5)
    for number in range(2):
        health = deployment.health(number)
        assert (health["backbone_loads"], health["answered"], health["failed"]) == (1, 6, 0)


def test_a_run_outlives_the_death_of_a_host_a_clientapp_and_a_supernode(
    deployment: Deployment, settings: list[str]
) -> None:
    submission = deployment.submit(*settings, "num-rounds=6", "num-local-steps=150", "name=faults")

    def training(number: int) -> Any:
        def look() -> Any:
            assert submission.poll() is None, (deployment.path / "run.out").read_text()
            try:
                health = deployment.health(number)
            except OSError:
                return None
            return health if health["working_on"] == "train" else None

        return wait_until(look, f"node {number} trains")

    def rounds() -> list[dict[str, Any]]:
        path = deployment.run_directory("faults") / "rounds.jsonl"
        return lines(path)

    def after_a_failure_of(number: int, since: int) -> None:
        """Wait for a round, later than a failed one, in which the node takes part again."""

        def back() -> bool:
            assert submission.poll() is None, (deployment.path / "run.out").read_text()
            later = [row for row in rounds() if row["round"] > since]
            return any(row["num_clients_trained"] == 2 for row in later)

        wait_until(back, f"node {number} is back")

    # The host, in the middle of a training: the message is answered by name, the next round is whole.
    os.kill(training(0)["pid"], signal.SIGKILL)
    after_a_failure_of(0, rounds()[-1]["round"] + 1)
    failed = [row["failed"]["train"] for row in rounds() if row["round"] and row["failed"]["train"]]
    assert list(failed[0]) == ["0"] and "host died" in failed[0]["0"]

    # The process of a ClientApp: Flower's SuperNode would be deaf from then on.
    training(1)
    clientapps = subprocess.run(
        ["pgrep", "-f", f"flwr-clientapp.*{node_port(deployment, 1)}"], capture_output=True, text=True, check=True
    )
    before = rounds()[-1]["round"]
    for pid in clientapps.stdout.split():
        os.kill(int(pid), signal.SIGTERM)
    after_a_failure_of(1, before + 1)

    assert submission.wait(LIMIT_SECONDS) == 0
    result = json.loads((deployment.run_directory("faults") / "result.json").read_text())
    assert all(client["perplexity"] < client["backbone_perplexity"] for client in result["clients"])
    assert [row["round"] for row in rounds()] == list(range(7))


def node_port(deployment: Deployment, number: int) -> int:
    return folder.read_node(deployment.path / f"node-{number}").port


def refused(deployment: Deployment, name: str, change: Callable[[Path], list[str] | None]) -> str:
    """Start a SuperNode that is not right; return what it says until it ends, or tries in vain again and again."""
    part = deployment.path / name
    shutil.copytree(deployment.path / "node-0", part, ignore=shutil.ignore_patterns("host", "*.log", "apps"))
    settings = part / "node.toml"
    settings.write_text(re.sub(r"\nport = \d+", f"\nport = {free_port()}", settings.read_text()))
    arguments = change(part) or node.supernode_arguments(part, folder.read_node(part))
    with Processes(part) as processes:
        log = part / "supernode.log"
        process = processes.start("flower-supernode", arguments, log)
        wait_until(lambda: process.poll() or log.read_text().count("Connection attempt failed") > 1, f"{name} fails")
    return log.read_text()


def without(arguments: list[str], option: str) -> list[str]:
    begin = arguments.index(option)
    return [*arguments[:begin], *arguments[begin + 2 :]]


def test_strangers_are_refused(deployment: Deployment) -> None:
    def plain(part: Path) -> list[str]:
        return node.supernode_arguments(part, folder.read_node(part))

    def another_key(part: Path) -> None:
        (part / "node.key").unlink()
        write_node_keys(part / "node.key", part / "node.pub")

    def another_authority(part: Path) -> None:
        (part / "ca.crt").unlink()
        Authority().write_certificate(part)

    def no_key(part: Path) -> list[str]:
        return without(plain(part), "--auth-supernode-private-key")

    def no_tls(part: Path) -> list[str]:
        arguments = without(without(plain(part), "--root-certificates"), "--auth-supernode-private-key")
        return [*arguments, "--insecure"]

    online = deployment.num_online()
    assert online == 2
    assert "could not establish a connection" in refused(deployment, "key", another_key)
    assert "CERTIFICATE_VERIFY_FAILED" in refused(deployment, "authority", another_authority)
    for name, change in (("no-key", no_key), ("no-tls", no_tls)):
        assert "SuperNode ID" not in refused(deployment, name, change)
    assert deployment.num_online() == online
    assert "No SuperNode found with the given public key" in (deployment.path / "server/superlink.log").read_text()


def test_a_run_that_fails_says_so(deployment: Deployment, settings: list[str]) -> None:
    submission = deployment.submit(*settings, "num-rounds=1", "max-sequence-tokens=2", "name=fails")
    assert submission.wait(LIMIT_SECONDS) == 1
    said = (deployment.path / "run.out").read_text()
    assert "examples of client 0 fits into 2 tokens" in said or "answers of client 0 fits into 2 tokens" in said
    assert "failed: the run ended as finished:failed" in said
