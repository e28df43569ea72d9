"""The run directory: all that a run leaves behind, written as it goes so that nothing is lost when it is stopped."""

import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.atomic_file import replace_file, replace_json
from common.backbone_source import distribution_root
from common.config import CHANGE_NO_RESULT, Config, kebab
from common.measures import Measured
from common.mixture_arrays import Arrays
from common.mixture_file import CARD, PEFT_TYPE, PREFIX, WEIGHTS, weights_bytes
from common.perplexity import AnswerScore
from common.saved_run import CONFIG
from common.wire.rounds import TrainReply
from server.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, write_checkpoint
from server.growing_file import GrowingFile
from server.run_log import RunLog

# A child of Flower's logger, so that `flwr run --stream` shows it.
logger = logging.getLogger("flwr.fedmops")

VERSIONED = ("fedmops", "flwr", "torch", "transformers", "peft", "bitsandbytes", "datasets", "flwr-datasets", "numpy")

VERSIONS, RESULT = "versions.json", "result.json"
HOLD_SECONDS = 60.0  # a ServerApp that Flower has given up may take its time to end
ALONE = "backbone"  # the phase in which clients score that
METRICS, ROUNDS, LOG = "metrics.jsonl", "rounds.jsonl", "run.log"
# Keys in which a resumed run may differ from what it was: where it lies, and how long it waits for whom.
RESUMED_OTHERWISE = ("resume", "run-directory", "round-timeout-seconds", "quorum", *CHANGE_NO_RESULT)


def new_run_directory(config: Config) -> Path:
    """Return where a run's results go: as configured, or runs/<time>-<name> in the working directory."""
    if config.run_directory:
        return Path(config.run_directory)
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}"


class RunDirectory:
    """Writes a run's files: config, versions, a line per score and per round, the mixture and the result.

    `checkpoint` is what a run goes on from that was interrupted, else None.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Create the directory, or find that of the run that is to be resumed.

        Raises FileExistsError when it holds a run already, and ValueError when that cannot be resumed.
        """
        self.path = path
        self.checkpoint: Checkpoint | None = None
        if config.resume:
            check_resumable(path, config)
        else:
            path.mkdir(parents=True, exist_ok=True)
            if (path / METRICS).exists():
                raise FileExistsError(f"run-directory {path} holds a run already: name another or remove it")
        self._log = RunLog(path / LOG)
        try:
            self._log.hold(HOLD_SECONDS if config.resume else 0.0)
            if config.resume:
                self.checkpoint = read_checkpoint(path)
                for name, size in self.checkpoint.sizes.items():
                    os.truncate(path / name, size)
            else:
                replace_json(path / CONFIG, settings_of(config))
                replace_json(path / VERSIONS, versions())
            self._told_alone = told_alone(path / METRICS)
            self._growing = {name: GrowingFile(path / name) for name in (METRICS, ROUNDS)}
        except BaseException:
            self._log.close()
            raise
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)

    def add_scores(
        self,
        server_round: int,
        phase: str,
        client: int,
        scores: dict[str, AnswerScore],
        measured: Measured | None = None,
    ) -> None:
        """Append a client's scores, a line per task, and what else was measured.

        Of the backbone alone the last round's count: who was left out, or came late, tells them later.
        """
        if phase == ALONE and server_round == 0:
            if client in self._told_alone:  # a resumed run asks again
                return
            self._told_alone.add(client)
        for task, score in scores.items():
            derived = {"perplexity": score.perplexity, "bits_per_character": score.bits_per_character}
            line = {"round": server_round, "phase": phase, "client": client, "task": task}
            measures = {name: asdict(each) for name, each in (measured or {}).get(task, {}).items()}
            more = {"measures": measures} if measures else {}
            self._append(METRICS, line | asdict(score) | derived | more, again=phase != ALONE)

    def add_training(self, server_round: int, client: int, update: TrainReply) -> None:
        """Append what a client told of its training."""
        line = {
            "round": server_round,
            "phase": "train",
            "client": client,
            "loss": update.loss,
            "num_examples": update.num_examples,
            "expert_use": (update.usage / update.num_examples).tolist(),
            "gate_entropy": update.gate_entropy,
        }
        self._append(METRICS, line)

    def add_round(self, figures: dict[str, Any]) -> None:
        """Append a round's summary."""
        self._append(ROUNDS, figures)

    def save_mixture(self, arrays: Arrays, card: dict[str, Any], client: int | None = None) -> None:
        """Replace the saved mixture, or adapter, and its card: that of all, or in a directory of its own a client's."""
        path = self.path if client is None else self.path / f"client-{client}"
        path.mkdir(exist_ok=True)
        replace_file(path / WEIGHTS, weights_bytes(arrays, PREFIX if card["peft_type"] == PEFT_TYPE else ""))
        replace_json(path / CARD, card)

    def save_checkpoint(
        self,
        server_round: int,
        shared: Arrays,
        own: dict[int, Arrays],
        failed: dict[int, int],
        back: dict[int, int],
        tasks: Sequence[str],
    ) -> None:
        """Save what the run would go on from; a full disk is told, and the run goes on."""
        try:
            self._write_waiting()
            sizes = {name: growing.path.stat().st_size for name, growing in self._growing.items()}
            write_checkpoint(self.path, Checkpoint(server_round, shared, own, sizes, failed, back, tuple(tasks)))
        except OSError as error:
            logger.warning("round %d cannot be resumed from: its checkpoint was not written (%s)", server_round, error)

    def finish(self, figures: dict[str, Any]) -> None:
        """Write the result: there is one only if the run ended well. Raises OSError where the disk is full."""
        self._write_waiting()
        replace_json(self.path / RESULT, figures)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop logging to the directory."""
        logger.removeHandler(self._log)
        self._log.close()

    def discard(self) -> None:
        """Remove the directory of a run that never began, unless something else is in it."""
        self.close()
        if self.checkpoint is not None:
            return
        for name in (CONFIG, VERSIONS, METRICS, ROUNDS, LOG):
            (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _append(self, name: str, line: dict[str, Any], again: bool = True) -> None:
        """Append a line, unless a resumed run asked `again` what stands there already."""
        if again and self.checkpoint is not None and line["round"] <= self.checkpoint.server_round:
            return
        self._growing[name].append(line)

    def _write_waiting(self) -> None:
        for growing in self._growing.values():
            growing.write_waiting()


def told_alone(metrics: Path) -> set[int]:
    """Return the clients of whose backbone alone metrics.jsonl has the scores."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    return {line["client"] for line in map(json.loads, lines) if line["phase"] == ALONE}


def settings_of(config: Config) -> dict[str, Any]:
    """Return a run's settings, under their keys."""
    return {kebab(key): value for key, value in asdict(config).items()}


def check_resumable(path: Path, config: Config) -> None:
    """Raise ValueError where a directory holds no run of these settings that was interrupted."""
    if not (path / CONFIG).is_file():
        raise ValueError(f"run-directory {path} holds no run: give that of the run to resume")
    if (path / RESULT).is_file():
        raise ValueError(f"the run in {path} has ended, its result is there: nothing is left to resume")
    found, wanted = json.loads((path / CONFIG).read_text(encoding="utf-8")), settings_of(config)
    for key, value in wanted.items():
        if key not in RESUMED_OTHERWISE and found.get(key) != value:
            raise ValueError(
                f"{key} is {value!r}, but {found.get(key)!r} in {path / CONFIG}: resume with the run's own settings"
            )


def versions() -> dict[str, str]:
    """Return the versions of what shapes figures, as far as it is installed here, and the checkout's commit.

    A deployment's server has no torch.
    """
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"commit": _commit()}


def _commit() -> str:
    """Return the checkout's commit, marked when files differ from it; "unknown" outside a checkout."""
    root = distribution_root()
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
