"""One simulation: check, choose the engine, show the run, report."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console

from common.backbone_source import BUILT_IN, distribution_root
from common.config import Config, Value, read_config
from common.example import Example
from common.measures import CHOICE_MEASURES, check_installed
from common.mixture_file import read_mixture
from common.own_settings import own_config, read_clients
from common.saved_run import CLIENT_STATES, CONFIG
from server.checkpoint import CHECKPOINT, read_checkpoint
from server.run_directory import METRICS, RESULT, ROUNDS, check_resumable, new_run_directory
from simulations.run_report import show_result
from simulations.settings import resolve
from simulations.view import RunView


class Engine(StrEnum):
    """Where the clients of a simulation run: in this process, or in Ray's."""

    INLINE = "inline"
    RAY = "ray"


def simulate(
    words: Sequence[str], engine: Engine, cpus_per_client: int, gpus_per_client: float, console: Console
) -> Path:
    """Run one simulation and print its result; return the run directory.

    Raises ValueError for bad input, before anything heavy is loaded, and RuntimeError when the run fails.
    """
    return simulate_settings(resolve(words), engine, cpus_per_client, gpus_per_client, console)


def resume(directory: Path, engine: Engine, cpus_per_client: int, gpus_per_client: float, console: Console) -> Path:
    """Go on with an interrupted simulation, as `simulate` does. Raises ValueError for a directory without one."""
    path = directory / CONFIG
    if not path.is_file():
        raise ValueError(f"{directory} holds no run: give the directory of the run to resume")
    own = {"run-directory": str(directory), "resume": True}
    settings = resolve([]) | json.loads(path.read_text(encoding="utf-8")) | own
    return simulate_settings(settings, engine, cpus_per_client, gpus_per_client, console)


def simulate_settings(
    run_config: dict[str, Value], engine: Engine, cpus_per_client: int, gpus_per_client: float, console: Console
) -> Path:
    """Run one simulation by whole settings."""
    config = read_config(run_config)
    directory = check_run(run_config, config)
    from common.partition import partitions_of

    for client in read_clients(run_config):
        try:
            partitions_of(own_config(run_config, {"partition-id": client}))
        except ValueError as error:
            raise ValueError(f"{config.clients}, [{client}]: {error}") from None
    if engine == Engine.RAY:
        _check_resources(cpus_per_client)
    elif cpus_per_client != 1 or gpus_per_client:
        raise ValueError("cpus-per-client and gpus-per-client are for --engine ray: leave them out or choose it")
    run_config["run-directory"] = str(directory)
    if config.centralised:
        said = f"one trainer with the data of {config.num_clients} clients, rounds: {config.last_round}"
    else:
        said = f"clients: {config.num_clients}, rounds: {config.last_round}, engine: {engine}"
        said += " (all clients in one process with one backbone)" if engine == Engine.INLINE else ""
    console.print(said, soft_wrap=True)
    started = time.monotonic()
    try:
        with RunView(console, directory, config.last_round, config.num_clients, config.centralised):
            if engine == Engine.INLINE:
                _run_inline(run_config, config)
            else:
                _run_on_ray(run_config, config, cpus_per_client, gpus_per_client, directory)
    except KeyboardInterrupt:
        where = f"; what was done so far is in {_short(directory)}" if directory.exists() else ""
        if (directory / CHECKPOINT).is_file():
            where += f", and fedmops resume {_short(directory)} goes on from there"
        console.print(f"stopped{where}", soft_wrap=True)
        raise
    result = read_result(directory)
    shutil.rmtree(directory / CLIENT_STATES, ignore_errors=True)  # nothing is left to resume
    last_round = json.loads((directory / ROUNDS).read_text().splitlines()[-1])
    show_result(result, config.method, last_round, console)
    where = _short(directory)
    console.print(f"{time.monotonic() - started:.0f} s; results are in {where}", soft_wrap=True)
    console.print(f"every client by round, as a picture: fedmops report {where}", soft_wrap=True)
    return directory


def check_run(run_config: dict[str, Value], config: Config) -> Path:
    """Check what all clients of a run share, before anything heavy is loaded; return the run's directory.

    Raises ValueError for bad input. What clients have of their own is not read.
    """
    # Needs the `datasets` library, which takes a second to import; only worth it once the rest is right.
    from common.partition import partitions_of

    check_measures(config, partitions_of(config))
    read_clients(run_config)
    if config.init_run is not None:
        read_mixture(config.init_run)
    directory = new_run_directory(config).resolve()
    if config.resume:
        check_resumable(directory, config)
        read_checkpoint(directory)
    elif (directory / METRICS).exists():
        raise ValueError(f"run-directory {_short(directory)} holds a run already: name another or remove it")
    return directory


def check_measures(config: Config, partitions: Iterable[Iterable[Example]]) -> None:
    """Raise ValueError for a measure whose package is missing, or for choices where no example has any."""
    check_installed(config.measure_names)
    of_choices = [name for name in config.measure_names if name in CHOICE_MEASURES]
    asked = (example for owned in partitions for example in owned if example.split == config.eval_split)
    if of_choices and not any(example.choices for example in asked):
        raise ValueError(
            f"measures: {of_choices[0]} needs examples with choices, and the {config.eval_split} examples of "
            f"data={config.data} have none: leave it out or choose other data"
        )


def _check_resources(cpus_per_client: int) -> None:
    if cpus_per_client > (available := os.cpu_count() or 1):
        raise ValueError(
            f"cpus-per-client must be at most {available}, the cores of this machine, got {cpus_per_client}"
        )


def read_result(directory: Path) -> dict[str, Any]:
    """Read a run's result. Raises RuntimeError when there is none: the run did not end well."""
    path = directory / RESULT
    if not path.is_file():
        raise RuntimeError(f"the run left no result in {directory}: see the logs there for why")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def spin_briefly() -> None:
    """Let libgomp's threads, which wait by spinning, do so for a short time; to be called before torch is imported.

    With another process on one of two cores a round took 12 times as long; with so short a spin 2.4 times, and no
    longer on an idle machine (docs/log.md).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _run_inline(run_config: dict[str, Value], config: Config) -> None:
    spin_briefly()
    # torch and transformers take seconds to import: only once the input is known to be right.
    from client.app import app as client_app
    from server.app import app as server_app
    from simulations.inline import run_inline

    with flowers_log_off():
        run_inline(server_app, client_app, run_config, config.num_clients)


@contextmanager
def flowers_log_off() -> Iterator[None]:
    """Silence Flower's own handlers: the view shows a run, and run.log keeps the rest."""
    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, []
    try:
        yield
    finally:
        logger.handlers = handlers


def _run_on_ray(
    run_config: dict[str, Value], config: Config, cpus_per_client: int, gpus_per_client: float, directory: Path
) -> None:
    from simulations.flower import run_on_ray

    # Flower's processes work in a directory of their own.
    is_path = {
        "clients": config.clients != "",
        "data": config.data != BUILT_IN and Path(config.data).exists(),  # else it is of the hub
        "backbone": config.backbone != BUILT_IN and Path(config.backbone).exists(),
        "prompt-init": config.init_run is not None,
    }
    absolute = {key: str(Path(str(run_config[key])).resolve()) for key, holds in is_path.items() if holds}
    outcome = run_on_ray(
        distribution_root(), run_config | absolute, config.num_clients, cpus_per_client, gpus_per_client, directory
    )
    if outcome.status != "finished:completed":
        raise RuntimeError(f"Flower says {outcome.status}: {outcome.details or 'no details'} (see {outcome.log_path})")


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
