"""A run that was interrupted and resumed ends as one that was not, to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from common.mixture_file import WEIGHTS
from server import run_directory
from server.app import app as server_app
from server.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, write_checkpoint
from simulations.inline import run_inline

pytestmark = pytest.mark.usefixtures("one_thread")


def run(settings: dict[str, Any], app: Any = client_app) -> Path:
    run_inline(server_app, app, settings, settings["num-clients"])
    return Path(settings["run-directory"])


class Interrupted:
    """The real ClientApp, and Ctrl-C when the given message comes for the second client."""

    def __init__(self, kind: str, server_round: int) -> None:
        self._kind, self._round, self._seen = kind, server_round, 0

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == self._kind and context.node_config["partition-id"] == 1:
            self._seen += 1
            if self._seen == self._round:
                raise KeyboardInterrupt
        return client_app(message, context)


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


KINDS = {
    "usage": {},
    "sampled, personal": {"client-fraction": 0.67, "num-personal-steps": 2},
    "own mixtures": {"aggregation": "none"},
    "lora": {"method": "lora", "lora-rank": 2},
    "float16": {"wire-format": "float16"},
    "int8": {"wire-format": "int8"},
    "int8, personal": {"wire-format": "int8", "num-personal-steps": 2},
}


PERSONAL = "int8, personal"
MOMENTS = [
    *((name, *moment) for name in KINDS for moment in (("train", 3), ("evaluate", 3), ("evaluate", 4))),
    *((PERSONAL, *moment) for moment in (("train", 5), ("evaluate", 5))),
]


@pytest.mark.parametrize(("name", "kind", "server_round"), MOMENTS)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    run_config: Callable[..., dict[str, Any]], tmp_path: Path, name: str, kind: str, server_round: int
) -> None:
    settings = run_config(**KINDS[name]) | {"num-rounds": 4}
    undisturbed = run(settings | {"run-directory": str(tmp_path / "undisturbed")})
    settings |= {"run-directory": str(tmp_path / "interrupted")}
    with pytest.raises(KeyboardInterrupt):
        run(settings, Interrupted(kind, server_round))
    resumed = run(settings | {"resume": True})

    for file in ("metrics.jsonl", "rounds.jsonl"):
        assert lines(resumed / file) == lines(undisturbed / file)
    assert json.loads((resumed / "result.json").read_text()) == json.loads((undisturbed / "result.json").read_text())
    weights = sorted(path.relative_to(undisturbed) for path in undisturbed.rglob(WEIGHTS))
    assert weights == sorted(path.relative_to(resumed) for path in resumed.rglob(WEIGHTS))
    for path in weights:
        assert (resumed / path).read_bytes() == (undisturbed / path).read_bytes()
    assert not (resumed / CHECKPOINT).exists()


def interrupted(run_config: Callable[..., dict[str, Any]], server_round: int = 2) -> dict[str, Any]:
    settings = run_config(num_rounds=3)
    with pytest.raises(KeyboardInterrupt):
        run(settings, Interrupted("train", server_round))
    return settings


def test_what_cannot_be_resumed_is_said_and_left_as_it_is(run_config: Callable[..., dict[str, Any]]) -> None:
    settings = interrupted(run_config)
    directory = Path(settings["run-directory"])
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ValueError, match=r"learning-rate is 0.5, but .* resume with the run's own settings"):
        run(settings | {"resume": True, "learning-rate": 0.5})
    with pytest.raises(FileExistsError, match="holds a run already"):
        run(settings)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    run(settings | {"resume": True})
    with pytest.raises(ValueError, match="has ended, its result is there: nothing is left to resume"):
        run(settings | {"resume": True})
    with pytest.raises(ValueError, match="resume needs a run-directory"):
        run(settings | {"resume": True, "run-directory": ""})
    with pytest.raises(ValueError, match="holds no run: give that of the run to resume"):
        run(settings | {"resume": True, "run-directory": str(directory / "other")})


def test_a_run_without_a_whole_round_starts_anew(run_config: Callable[..., dict[str, Any]]) -> None:
    settings = interrupted(run_config, server_round=1)
    with pytest.raises(ValueError, match=r"has no checkpoint.npz: no round of it was finished; start the run anew"):
        run(settings | {"resume": True})


def test_a_full_disk_spares_the_last_checkpoint_and_the_run(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "write_checkpoint", full)
    directory = run(run_config())
    said = (directory / "run.log").read_text()
    assert (
        "round 1 cannot be resumed from: its checkpoint was not written" in said
        and (directory / "result.json").exists()
    )


def test_a_checkpoint_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    arrays = {"pool.keys.1": np.arange(6, dtype=np.float32).reshape(2, 3), "gate.mean": np.ones(2, dtype=np.float32)}
    write_checkpoint(tmp_path, Checkpoint(7, arrays, {3: {"a/b": np.zeros(1, dtype=np.float32)}}, {"metrics.jsonl": 9}))
    found = read_checkpoint(tmp_path)
    assert (found.server_round, found.sizes, list(found.own), list(found.own[3])) == (
        7,
        {"metrics.jsonl": 9},
        [3],
        ["a/b"],
    )
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.shared[name], array)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged"):
        read_checkpoint(tmp_path)
