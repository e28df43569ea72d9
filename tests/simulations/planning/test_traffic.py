"""Planned traffic against the bytes that a run counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.app import app as client_app
from common.config import read_config
from server.app import app as server_app
from simulations.inline import run_inline
from simulations.planning.client_data import read_client
from simulations.planning.shape import shape_of
from simulations.planning.traffic import Traffic, plan_traffic

pytestmark = pytest.mark.usefixtures("one_thread")


def planned(run_config: dict[str, Any]) -> Traffic:
    config = read_config(run_config)
    data = [read_client(config, number) for number in range(config.num_clients)]
    tasks = sorted({task for client in data for task in client.trained})
    return plan_traffic(config, shape_of(config, tasks), data)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gate": "both", "task-weights": "learned", "client-fraction": 0.5},
        {"prompt-init": "vocabulary", "num-personal-steps": 1},
        {"centralised": True},
        {"num-experts": 1},
        {"method": "lora"},
        {"method": "multitask-prompt-tuning"},
        {"method": "hand-written"},
    ],
    ids=str,
)
def test_a_run_sends_what_is_planned(run_config: Callable[..., dict[str, Any]], changes: dict[str, Any]) -> None:
    settings = run_config(**changes)
    run_inline(server_app, client_app, settings, settings["num-clients"])
    lines = [json.loads(line) for line in (Path(settings["run-directory"]) / "rounds.jsonl").read_text().splitlines()]
    sent = [line["bytes_down"] + line["bytes_up"] for line in lines]
    plan = planned(settings)
    # Scores and shares take more or fewer characters, and LoRA's first B are all zero, which Flower sends once.
    within = 0.06 if changes.get("method") == "lora" else 0.02
    assert plan.before_round_1 == pytest.approx(sent[0], rel=within)
    if "num-personal-steps" in changes:  # whose bytes are in the log alone
        assert plan.run > sum(sent)
    else:
        assert plan.run == pytest.approx(sum(sent), rel=within)
