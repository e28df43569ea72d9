"""What a deployment survives, with Flower's real processes: the death of each of them, and full disks."""

import json
import resource
import signal
from pathlib import Path

import pytest

from common.mixture_file import WEIGHTS
from tests.deployment.deployed import Deployment, lines, simulate

pytestmark = pytest.mark.deploy

NO_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def test_a_run_outlives_the_death_of_a_host_a_clientapp_a_supernode_and_the_superlink(
    deployment: Deployment, settings: list[str]
) -> None:
    num_rounds = 9
    run = deployment.submit("faults", *settings, f"num-rounds={num_rounds}", "num-local-steps=150")

    def last_round() -> int:
        return int(run.rounds[-1]["round"])

    def wait_for_training(number: int) -> int:
        """Wait until a client is in the middle of it; return the round's number."""
        run.wait(lambda: deployment.working_on(number) == "train", f"node {number} trains")
        return last_round() + 1

    # The host: the message is answered by name, the next round is whole.
    hit = wait_for_training(0)
    deployment.kill("client.host", "node-0")
    assert run.wait_until_back(0, hit) == hit + 1
    (failed,) = [row["failed"]["train"] for row in run.rounds if row["round"] == hit]
    assert list(failed) == ["0"] and "host died" in failed["0"]

    # The process of a ClientApp: Flower's SuperNode would be deaf from then on.
    hit = wait_for_training(1)
    deployment.kill("flwr-clientapp", str(deployment.node_port(1)), number=signal.SIGTERM)
    assert run.wait_until_back(1, hit) == hit + 1

    # The SuperNode: its message fails at once, not at the deadline, and it is back in the next round.
    hit = wait_for_training(0)
    deployment.kill("client.supernode", str(deployment.node_port(0)))
    assert run.wait_until_back(0, hit) == hit + 1
    (failed,) = [row["failed"]["train"] for row in run.rounds if row["round"] == hit]
    assert list(failed) == ["0"] and ("Node Unavailable" in failed["0"] or "started again" in failed["0"])
    assert "was taken for alive, and has left" in (deployment.path / "node-0" / "supernode.log").read_text()

    # The SuperLink, between two rounds or within one.
    hit = wait_for_training(1)
    deployment.kill("flower-superlink")
    run.wait_for_round(hit + 1)

    assert run.ends() == 0, run.said
    run.check_whole(num_rounds)
    assert all(client["perplexity"] < client["backbone_perplexity"] for client in run.result["clients"])


def test_a_run_whose_serverapp_was_killed_is_resumed_to_the_bits_of_a_simulation(
    deployment: Deployment, settings: list[str], tmp_path: Path
) -> None:
    words = [*settings, "num-rounds=4", "num-local-steps=20"]
    undisturbed = tmp_path / "undisturbed"
    simulate(undisturbed, words)

    killed = deployment.submit("killed", *words)
    killed.wait_for_round(2)
    killed.wait(lambda: deployment.working_on(0) == "train", "node 0 trains")
    deployment.kill("flwr-serverapp")
    assert killed.ends() == 0, killed.said

    assert "the ServerApp was lost; the run is resumed" in killed.said and "going on after round 2" in killed.said
    killed.check_whole(4)
    assert (killed.directory / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    assert killed.result == json.loads((undisturbed / "result.json").read_text())


def test_full_disks_damage_nothing_and_end_no_run(deployment: Deployment, settings: list[str]) -> None:
    """The kernel refuses files of these processes any growth, as a full disk does."""
    run = deployment.submit("full", *settings, "num-rounds=5", "num-local-steps=20")
    run.wait_for_round(1)
    host = deployment.health(0)["pid"]
    (server_app,) = deployment.pids("flwr-serverapp")
    for pid in (host, server_app):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    stopped_at = run.rounds[-1]["round"]
    run.wait(lambda: f"round {stopped_at + 2} of 5" in run.said, "rounds go on")
    assert lines(run.directory / "rounds.jsonl")[-1]["round"] == stopped_at
    assert deployment.health(0)["unsaved"] > 0
    for pid in (host, server_app):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, NO_LIMIT)
    assert run.ends() == 0, run.said
    run.check_whole(5)
    assert "its mixture is not on disk" in run.said and "cannot be resumed from" in run.said
    assert deployment.health(0)["failed"] == 0
