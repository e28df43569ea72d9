"""Twenty kills at random moments of a run of 30 rounds, with the built-in backbone and real processes."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.deployment.deployed import Deployment, lines, simulate

pytestmark = [pytest.mark.deploy, pytest.mark.kills]

NUM_ROUNDS, NUM_KILLS, LAST_KILL = 30, 20, 26
WORDS = [
    *("device=cpu", "num-clients=2", f"num-rounds={NUM_ROUNDS}", "num-local-steps=12", "batch-size=16"),
    *("tasks=2", "train-examples=2000", "eval-examples=40", "num-experts=4", "learning-rate=0.04", "wire-format=int8"),
    *("round-timeout-seconds=30", "round-attempts=6"),
]
SECONDS_OF_A_ROUND = 8.0  # about: kills fall anywhere in one
VICTIMS = ["client.host"] * 8 + ["flwr-clientapp"] * 5 + ["client.supernode"] * 4 + ["flower-superlink"] * 3
LARGEST_DIFFERENCE, NUM_LAST = 0.02, 10  # of the undisturbed run's last rounds


def test_a_run_of_30_rounds_outlives_20_kills_at_random_and_is_as_good_as_undisturbed(
    deployment: Deployment, tmp_path: Path
) -> None:
    rng = random.Random(0)
    assert len(VICTIMS) == NUM_KILLS
    victims = rng.sample(VICTIMS, NUM_KILLS)
    run = deployment.submit("kills", *WORDS)
    for victim, moment in zip(victims, sorted(rng.uniform(1, LAST_KILL) for _ in victims), strict=True):
        run.wait_for_round(int(moment))
        time.sleep(moment % 1 * SECONDS_OF_A_ROUND)
        number = rng.randrange(2)
        words = {
            "client.host": [f"node-{number}"],
            "flwr-clientapp": [str(deployment.node_port(number))],
            "client.supernode": [str(deployment.node_port(number))],
            "flower-superlink": [],
        }[victim]
        run.wait(lambda victim=victim, words=words: deployment.pids(victim, *words), f"{victim} runs")
        deployment.kill(victim, *words, number=rng.choice([signal.SIGKILL, signal.SIGTERM]))
    assert run.ends() == 0, run.said
    run.check_whole(NUM_ROUNDS)

    simulate(tmp_path / "undisturbed", WORDS)
    # An undisturbed run's rounds wander by nearly as much, too.
    usual = [row["perplexity"] for row in lines(tmp_path / "undisturbed" / "rounds.jsonl")[-NUM_LAST:]]
    found = run.result["perplexity"]
    assert min(usual) * (1 - LARGEST_DIFFERENCE) < found < max(usual) * (1 + LARGEST_DIFFERENCE)
    lost = sum(2 - row["num_clients_trained"] for row in run.rounds[1:])
    print(f"{lost} of {2 * NUM_ROUNDS} trainings lost: {found} for {usual[-1]} ({min(usual)} to {max(usual)})")
    assert lost  # the kills were felt
