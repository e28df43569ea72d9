"""A full disk: nothing is damaged, the run goes on where it can, and what waits is written once there is room."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.atomic_file import replace_file
from common.mixture_arrays import initial_arrays
from common.mixture_file import WEIGHTS, card, read_mixture
from common.mixture_spec import MixtureSpec
from server.checkpoint import CHECKPOINT, read_checkpoint
from server.growing_file import GrowingFile
from server.run_directory import METRICS, RESULT, ROUNDS, RunDirectory
from server.strategy import MixtureStrategy
from simulations.inline import InlineGrid


@contextmanager
def full(size: int) -> Iterator[None]:
    """Let the kernel refuse files beyond a size: what is written up to it stays, as on a disk that fills."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_wait_for_room_and_no_line_is_torn(tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    growing = GrowingFile(path)
    growing.append({"n": 0})
    with full(path.stat().st_size + 5):
        for n in (1, 2):
            growing.append({"n": n})
        assert lines(path) == [{"n": 0}]
        with pytest.raises(OSError, match=r"File too large|No space left"):
            growing.write_waiting()
    growing.append({"n": 3})
    assert lines(path) == [{"n": n} for n in range(4)]
    assert len([record for record in caplog.records if "its lines wait" in record.message]) == 1


def test_a_file_that_does_not_fit_leaves_the_one_before_and_no_part(tmp_path):
    replace_file(tmp_path / "file", b"old")
    with full(100), pytest.raises(OSError):
        replace_file(tmp_path / "file", b"new" * 100)
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.fixture
def run(clients: Any, spec: MixtureSpec, directory: RunDirectory) -> Callable[[int], Any]:
    first = initial_arrays(spec, np.random.default_rng(0))
    grid = InlineGrid(clients.app, {}, 3)
    nodes = dict(enumerate(grid.get_node_ids()))
    strategy = MixtureStrategy(spec, card(spec, "tiny", "same", 0), nodes, 1.0, 0, 60.0)
    return lambda num_rounds: strategy.run(grid, first, num_rounds, directory)


def test_a_run_goes_on_without_room_and_loses_no_line(clients, directory, run, caplog):
    limits = []

    def fill(reply: Any) -> Any:
        server_round = clients.calls[-1][1]
        if server_round == 2 and not limits:
            limits.append(full(10))
            limits[0].__enter__()
        if server_round == 4 and len(limits) == 1:
            assert read_checkpoint(directory.path).server_round == 1  # the last that was written is whole
            assert lines(directory.path / ROUNDS)[-1]["round"] == 1
            limits.append(limits[0].__exit__(None, None, None))
        return reply

    clients.misbehaviour[0, "train"] = fill
    outcome = run(5)
    assert [row["round"] for row in lines(directory.path / ROUNDS)] == [1, 2, 3, 4, 5]
    metrics = [(row["round"], row["phase"], row["client"]) for row in lines(directory.path / METRICS)]
    expected = [(n, phase, client) for n in range(1, 6) for phase in ("train", "mixture") for client in range(3)]
    assert metrics == expected
    for name, array in read_mixture(directory.path).arrays.items():
        np.testing.assert_array_equal(array, outcome.mixtures.shared[name])
    said = caplog.text
    assert "round 2: its mixture is not on disk" in said and "round 3 cannot be resumed from" in said
    assert read_checkpoint(directory.path).server_round == 4


def test_a_result_that_does_not_fit_is_an_error_by_name_and_the_run_can_go_on(directory, run):
    run(2)
    with full(10), pytest.raises(OSError, match=r"File too large|No space left"):
        directory.finish({"clients": []})
    assert not (directory.path / RESULT).exists()
    assert (directory.path / CHECKPOINT).exists() and (directory.path / WEIGHTS).exists()
