"""What a run did to every client, at its end and before."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from client.app import app as client_app
from server.app import app as server_app
from simulations.clients_plot import clients_figure, draw_clients
from simulations.inline import run_inline
from simulations.run_report import PICTURE, curves, report, so_far

PNG = b"\x89PNG"


def score(client: int, server_round: int, task: str, nll: float, phase: str = "mixture") -> dict[str, Any]:
    sums = {"nll": nll, "num_tokens": 2, "num_characters": 4, "num_examples": 3}
    return {"round": server_round, "phase": phase, "client": client, "task": task, **sums}


METRICS = [
    score(1, 0, "a", 6.0, "backbone"),
    score(0, 0, "a", 4.0, "backbone"),
    score(0, 0, "b", 8.0, "backbone"),
    {"round": 1, "phase": "train", "client": 0, "loss": 1.0},
    score(0, 1, "a", 2.0),
    score(0, 1, "b", 2.0),
    score(1, 1, "a", 4.0),
    score(2, 2, "c", 8.0, "backbone"),  # came late
    score(0, 3, "a", 1.0),
    score(0, 3, "b", 1.0),
    score(2, 3, "c", 6.0),
]


def test_tasks_count_by_their_tokens_and_the_backbone_is_round_0() -> None:
    found = curves(METRICS)
    expected = {0: {0: 3.0, 1: 1.0, 3: 0.5}, 1: {0: 3.0, 1: 2.0}, 2: {0: 4.0, 3: 3.0}}  # nats a token
    assert {client: {key: math.log(value) for key, value in of.items()} for client, of in found.items()} == {
        client: pytest.approx(of) for client, of in expected.items()
    }


def test_before_the_end_each_clients_last_scores_count() -> None:
    result = so_far(METRICS)
    assert [(row["client"], row["tasks"], row["num_examples"]) for row in result["clients"]] == [
        (0, ["a", "b"], 6),
        (1, ["a"], 3),
        (2, ["c"], 3),
    ]
    assert math.log(result["perplexity"]) == pytest.approx((0.5 + 2.0 + 3.0) / 3)
    assert math.log(result["backbone_perplexity"]) == pytest.approx((3.0 + 3.0 + 4.0) / 3)
    alone = so_far(METRICS[:3])  # before round 1
    assert alone["perplexity"] == alone["backbone_perplexity"]


def shown(directory: Path, output: Path | None = None) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    report(directory, output, console)
    return console.export_text()


@pytest.fixture
def run(run_config: Callable[..., dict[str, Any]]) -> Path:
    settings = run_config()
    run_inline(server_app, client_app, settings, settings["num-clients"])
    return Path(settings["run-directory"])


def test_a_run_is_reported_as_at_its_end_and_without_its_result_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    said = shown(run)
    result = json.loads((run / "result.json").read_text())
    for row in result["clients"]:
        assert f"{row['backbone_perplexity']:.2f} │ {row['perplexity']:>7.2f}" in said
    assert "gate: " in said and (run / PICTURE).read_bytes().startswith(PNG)

    (run / "result.json").unlink()
    before = shown(run, tmp_path / "here.png")
    table = [line for line in said.splitlines() if "│" in line]
    assert [line for line in before.splitlines() if "│" in line] == table
    num_rounds = json.loads((run / "config.json").read_text())["num-rounds"]
    assert f"after round {num_rounds} of {num_rounds}, of a run that goes on or was interrupted" in before
    assert (tmp_path / "here.png").read_bytes().startswith(PNG)


def test_what_cannot_be_reported_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run: give the directory that a run has left"):
        report(tmp_path, None, Console())
    (run / "rounds.jsonl").write_text('{"round": 0, "perp')
    with pytest.raises(ValueError, match="has no scores yet"):
        report(run, None, Console())


def test_a_picture_of_many_clients_and_of_what_is_infinite_is_drawn() -> None:
    many = {client: {0: 9.0 + client, 2: math.inf, 3: 2.0} for client in range(40)} | {40: {0: math.inf}}
    assert draw_clients(many, "test").startswith(PNG)


def test_a_round_that_a_client_missed_is_a_gap_in_its_line() -> None:
    away, there, mean = clients_figure({0: {0: 8.0, 1: 4.0, 3: 2.0}, 1: {1: 1.0, 2: 1.0, 3: 8.0}}).axes[0].lines
    np.testing.assert_array_equal(away.get_ydata(), [8.0, 4.0, np.nan, 2.0])
    np.testing.assert_array_equal(there.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(mean.get_ydata(), [8.0, 2.0, 1.0, 4.0])
