"""A deployment with Flower's real processes, TLS and keys: what it gives, and whom it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.flower_processes import Processes
from deployment import folder, node
from deployment.certificates import Authority, write_node_keys
from simulations.cli import main
from tests.deployment.deployed import Deployment, free_port, wait_until
from tests.tiny import backbone_on_disk

pytestmark = pytest.mark.deploy


def test_a_run_gives_what_a_simulation_gives_and_loads_each_backbone_once(
    deployment: Deployment, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*settings, "num-rounds=2", "num-local-steps=2"]
    before = [deployment.health(number) for number in range(2)]
    run = deployment.submit("first", *words)
    assert run.ends() == 0
    assert "round 2 of 2" in run.said and "client 1: perplexity" in run.said

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["fedmops", "simulate", *words, f"run-directory={tmp_path / 'simulated'}"])
    with pytest.raises(SystemExit):
        main()
    simulated = json.loads((tmp_path / "simulated" / "result.json").read_text())
    for mine, theirs in zip(run.result["clients"], simulated["clients"], strict=True):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)  # other numbers of threads
        assert mine["backbone_perplexity"] == pytest.approx(theirs["backbone_perplexity"], rel=1e-5)
    for number in range(2):
        health = deployment.health(number)
        assert health["pid"] == before[number]["pid"] and health["backbone_loads"] == 1
        assert (health["answered"] - before[number]["answered"], health["failed"]) == (6, 0)


def test_a_run_that_fails_says_so(deployment: Deployment, settings: list[str]) -> None:
    run = deployment.submit("fails", *settings, "num-rounds=1", "max-sequence-tokens=2")
    assert run.ends() == 1
    assert re.search("(examples|answers) of client 0 fits into 2 tokens", run.said)
    assert "failed: the run ended as finished:failed" in run.said


def test_a_node_with_another_backbone_is_named_and_left_out_before_round_1(
    deployment: Deployment, settings: list[str], tmp_path: Path
) -> None:
    part = deployment.path / "node-1"
    toml = (part / "node.toml").read_text()
    deployment.stop("node-1")
    (part / "node.toml").write_text(f'{toml}\nbackbone = "{backbone_on_disk(tmp_path / "other", seed=1)}"\n')
    try:
        deployment.start("node-1")
        deployment.wait_until_online()
        run = deployment.submit("differs", *settings, "num-rounds=2", "num-local-steps=2")
        assert run.ends() == 0
    finally:
        (part / "node.toml").write_text(toml)
        deployment.stop("node-1")
        deployment.start("node-1")
        deployment.wait_until_online()
    assert re.search("client [01] is left out: its weights differ from most clients'", run.said)
    before, *later = run.rounds
    assert len(before["failed"]["prepare"]) == 1
    assert [row["num_clients_trained"] for row in later] == [1, 1]
    assert len([client for client in run.result["clients"] if "perplexity" in client]) == 1


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

    assert deployment.num_online() == 2
    assert "could not establish a connection" in refused(deployment, "key", another_key)
    assert "CERTIFICATE_VERIFY_FAILED" in refused(deployment, "authority", another_authority)
    for name, change in (("no-key", no_key), ("no-tls", no_tls)):
        assert "SuperNode ID" not in refused(deployment, name, change)
    assert deployment.num_online() == 2
    assert "No SuperNode found with the given public key" in (deployment.path / "server/superlink.log").read_text()
