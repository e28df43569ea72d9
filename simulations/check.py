"""fedmops check: all that a simulation does before round 1, on its clients' own code, and nothing of it is kept."""

import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from common.config import Config, Value, read_config
from common.data_counts import over_all_clients
from common.mixture_spec import MixtureSpec, Spec, num_parameters
from common.perplexity import total
from common.wire.preparation import PREPARE, PrepareReply
from server.run_directory import RunDirectory
from simulations.report import data_line, named_tasks
from simulations.settings import resolve
from simulations.simulate import check_run, flowers_log_off, spin_briefly
from simulations.view import RunView

if TYPE_CHECKING:  # they take seconds to import
    from server.preparation import Preparation
    from simulations.inline import InlineGrid


@dataclass
class Readiness:
    """Who is ready for round 1, and what keeps the others."""

    replies: dict[int, PrepareReply]
    problems: dict[int, str] = field(default_factory=dict)  # by client
    of_all: str = ""  # a problem of the run, not of a client
    spec: Spec | None = None
    uncompressed: dict[int, PrepareReply] = field(default_factory=dict)  # of the same clients, if they were asked


def check(words: Sequence[str], with_penalty: bool, console: Console) -> bool:
    """Prepare all clients of a simulation as a run does, and print what is found; say whether all are ready.

    `with_penalty` also scores every client's examples with the backbone uncompressed, which is loaded for it. Raises
    ValueError for bad input, before anything heavy is loaded.
    """
    run_config = resolve(words)
    config = read_config(run_config)
    check_run(run_config, config)
    if with_penalty:
        read_config({**run_config, "quantization": "none"})  # refuses files that are quantized already
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        with RunView(console, path, config.last_round, config.num_clients, config.centralised), flowers_log_off():
            found = _prepare(run_config, config, path)
            if with_penalty and found.replies:
                found.uncompressed = _uncompressed(run_config, config, Path(directory) / "uncompressed")
    console.print(readiness_table(found, config))
    for line in _lines(found, config):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in problem_lines(found, config.num_clients):
        console.print(line, style="red", soft_wrap=True, markup=False, highlight=False)
    is_ready = not found.problems and not found.of_all
    number = f"all {config.num_clients}" if is_ready else f"{len(found.replies)} of {config.num_clients}"
    last = f"{number} clients are ready ({time.monotonic() - started:.0f} s)"
    last += f": next, {shlex.join(['fedmops', 'simulate', *words])}" if is_ready else ""
    console.print(last, soft_wrap=True, markup=False, highlight=False)
    return is_ready


def _prepare(run_config: Mapping[str, Value], config: Config, path: Path) -> Readiness:
    """Do what the ServerApp does up to round 1, with the inline engine."""
    spin_briefly()
    # torch and transformers take seconds to import: only once the input is known to be right.
    from server.app import starting_point

    grid, preparation = _exchange(run_config, config, path)
    found = Readiness(preparation.replies)
    if preparation.replies:
        try:
            found.spec, _, _ = starting_point(grid, config, preparation)
        except (RuntimeError, ValueError) as error:
            found.of_all = str(error)
    nodes = grid.get_node_ids()  # in the order of the clients
    for step, failures in preparation.failed.items():
        for who, reason in failures.items():
            found.problems[nodes.index(who) if step == PREPARE else who] = reason
    return found


def _uncompressed(run_config: Mapping[str, Value], config: Config, path: Path) -> dict[int, PrepareReply]:
    """Return what clients say that all have the backbone uncompressed, of its perplexity alone."""
    unmeasured = {**run_config, "measures": ""}
    _, preparation = _exchange(unmeasured, replace(config, measures=""), path, {"quantization": "none"})
    return preparation.replies


def _exchange(
    run_config: Mapping[str, Value], config: Config, path: Path, node_config: Mapping[str, Value] | None = None
) -> tuple["InlineGrid", "Preparation"]:
    """Make a run's first exchange; `node_config` is what all clients have of their own."""
    from client.app import app as client_app
    from server.preparation import first_exchange
    from simulations.inline import InlineGrid

    grid = InlineGrid(client_app, run_config, config.num_clients, node_config)
    directory = RunDirectory(path, config)
    try:
        preparation = first_exchange(
            grid, grid.get_node_ids(), config.round_timeout_seconds, directory, config.measure_names
        )
    finally:
        directory.close()
    return grid, preparation


def problem_lines(found: Readiness, num_clients: int) -> list[str]:
    """Return a line for each problem, with the clients that have it."""
    clients_of: dict[str, list[int]] = {}
    for client, reason in sorted(found.problems.items()):
        for prefix in (f"client {client} is left out: ", f"client {client}: "):
            reason = reason.removeprefix(prefix)
        clients_of.setdefault(reason, []).append(client)
    lines = []
    for reason, clients in clients_of.items():
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {', '.join(map(str, clients))}"
        lines.append(f"{'all clients' if len(clients) == num_clients > 1 else who}: {reason}")
    return [*lines, found.of_all] if found.of_all else lines


def readiness_table(found: Readiness, config: Config) -> Table:
    """Return a line for each client; compressions have a column where clients differ in them."""
    table = Table(title="Before round 1, per client")
    differ = len({reply.quantization for reply in found.replies.values()}) > 1
    table.add_column("client", justify="right", no_wrap=True)
    table.add_column("tasks")
    columns = [*(["compression"] if differ else []), "train", config.eval_split, "cut", "left out", "backbone"]
    for name in [*columns, *(["penalty"] if found.uncompressed else [])]:
        table.add_column(name, justify="left" if name == "compression" else "right", no_wrap=True)
    for client in range(config.num_clients):
        if client not in found.replies:
            table.add_row(str(client), "[red]not ready[/red]")
            continue
        reply = found.replies[client]
        splits = reply.data_counts.train, reply.data_counts.evaluation
        table.add_row(
            str(client),
            named_tasks(reply.tasks),
            *([reply.quantization] if differ else []),
            *(str(split.num_examples - split.num_left_out) for split in splits),
            str(sum(split.num_prompts_cut for split in splits)),
            str(sum(split.num_left_out for split in splits)),
            f"{total(reply.scores.values()).perplexity:.2f}",
            *([penalty(reply, found.uncompressed.get(client))] if found.uncompressed else []),
        )
    return table


def penalty(reply: PrepareReply, uncompressed: PrepareReply | None) -> str:
    """Say by how much a client's compression raises the perplexity of its own examples."""
    if uncompressed is None:
        return ""
    ratio = total(reply.scores.values()).perplexity / total(uncompressed.scores.values()).perplexity
    return f"{ratio - 1:+.1%}"


def _lines(found: Readiness, config: Config) -> list[str]:
    """Say what the ready clients share: the backbone, what is trained, and what of the data is not used."""
    if not found.replies:
        return []
    first, *_ = found.replies.values()
    compressions = ", ".join(sorted({reply.quantization for reply in found.replies.values()}))
    said = [
        f"backbone: {config.backbone}, {compressions}, weights {first.weights_hash[:8]}, tokenizer "
        f"{first.tokenizer_hash[:8]}"
    ]
    if isinstance(found.spec, MixtureSpec):
        experts = f"{found.spec.num_experts} experts of {found.spec.tokens_per_expert} tokens"
        layers = f"layers {min(found.spec.kv_shapes)} to {max(found.spec.kv_shapes)}"
        said.append(f"{config.method}: {experts} in {layers}, {num_parameters(found.spec):,} parameters")
    elif found.spec is not None:
        said.append(f"{config.method}: {num_parameters(found.spec):,} parameters")
    counts = over_all_clients([reply.data_counts for reply in found.replies.values()])
    return [*said, line] if (line := data_line(asdict(counts))) else said
