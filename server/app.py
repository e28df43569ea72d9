"""The ServerApp: prepares the clients and the mixture, runs the rounds, leaves a run directory."""

import logging
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import Config, read_config
from common.data_counts import over_all_clients
from common.mixture_arrays import Arrays
from common.mixture_file import card
from common.mixture_spec import Spec, num_parameters
from common.perplexity import geometric_mean, total
from common.wire.preparation import PrepareReply
from common.wire.rounds import EvaluateReply
from server.bounded_pulls import bound_pulls
from server.checkpoint import Checkpoint
from server.exchange import wait_for_nodes
from server.first_adapter import first_adapter
from server.first_mixture import first_mixture
from server.measured import add_measures
from server.newcomers import Newcomers
from server.preparation import Preparation, prepare_clients
from server.run_directory import RunDirectory, new_run_directory
from server.strategy import MixtureStrategy

log = logging.getLogger("flwr.fedmops")

CONNECT_SECONDS = 120.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from the first exchange to the result."""
    config = read_config(context.run_config)
    bound_pulls()
    nodes = wait_for_nodes(grid, config.num_clients, CONNECT_SECONDS, config.quorum)
    directory = RunDirectory(new_run_directory(config), config)
    try:
        federate(grid, nodes, config, directory)
    finally:
        directory.close()


def federate(grid: Grid, nodes: list[int], config: Config, directory: RunDirectory) -> None:
    """Prepare clients and mixture, run the rounds, write the result."""
    started = time.monotonic()
    try:
        preparation = prepare_clients(
            grid,
            nodes,
            config.round_timeout_seconds,
            directory,
            config.measure_names,
            config.quorum,
            config.round_attempts,
        )
        if directory.checkpoint is not None:
            preparation.known_tasks = frozenset(directory.checkpoint.tasks)
        spec, arrays, described = starting_point(grid, config, preparation, directory.checkpoint)
    except (RuntimeError, ValueError):
        directory.discard()
        raise
    num_trained = num_parameters(spec)
    log.info("%d clients; %s of %d parameters", len(preparation.nodes), config.method, num_trained)
    clients = [total(reply.scores.values()) for reply in preparation.replies.values()]
    directory.add_round(
        {
            "round": 0,
            "perplexity": geometric_mean(client.perplexity for client in clients),
            "bits_per_character": total(clients).bits_per_character,
            "num_clients_evaluated": len(clients),
            "failed": preparation.failed,
            "bytes_down": preparation.bytes_down,
            "bytes_up": preparation.bytes_up,
            "seconds": time.monotonic() - started,
        }
    )
    strategy = MixtureStrategy(
        spec=spec,
        card=described,
        nodes=preparation.nodes,
        client_fraction=config.client_fraction,
        seed=config.seed,
        timeout_seconds=config.round_timeout_seconds,
        centralised=config.centralised,
        aggregation=config.aggregation,
        wire_format=config.wire_format,
        measures=config.measure_names,
        quorum=config.quorum,
        attempts=config.round_attempts,
        newcomers=Newcomers(preparation, directory, config.round_timeout_seconds, config.measure_names),
    )
    outcome = strategy.run(grid, arrays, config.last_round, directory)
    figures = result(preparation.replies, outcome.last)
    if config.num_personal_steps:
        try:
            personal = strategy.personalise(grid, outcome, config.num_rounds + 1, directory)
            add_personal(figures, personal.last)
        except RuntimeError as error:  # what the rounds gave is not lost with it
            log.warning("there is no personalised result: %s", error)
    tasks = result_by_task(preparation.replies, outcome.last)
    if config.measures:
        add_measures(figures, tasks, preparation.replies, outcome.last)
    directory.finish({"num_parameters": num_trained} | figures | {"tasks": tasks})
    for row in figures["clients"]:
        now = f"{row['perplexity']:.3f}" if "perplexity" in row else "without a result"
        before = row["backbone_perplexity"]
        log.info("client %d: perplexity %.3f with the backbone alone, now %s", row["client"], before, now)
    log.info("results are in %s", directory.path)


def starting_point(
    grid: Grid, config: Config, preparation: Preparation, checkpoint: Checkpoint | None = None
) -> tuple[Spec, Arrays, dict[str, Any]]:
    """Return what round 1, or a resumed run, starts from: sizes, values, and the card that is saved beside them."""
    first = next(iter(preparation.replies.values()))
    if config.method != "mixture":
        adapter, arrays = first_adapter(grid, config, preparation)
        return adapter, arrays, adapter.peft_card | {"base_model_name_or_path": config.backbone}
    spec = config.mixture_spec(first.hidden_size, first.kv_shapes, preparation.tasks, first.gate_input_size)
    arrays = checkpoint.shared if checkpoint else first_mixture(grid, config, spec, preparation)
    return spec, arrays, card(spec, config.backbone, first.fingerprint, 0)


def add_personal(figures: dict[str, Any], last: dict[int, EvaluateReply]) -> None:
    """Add each client's perplexity, and their geometric mean, after it trained on for itself."""
    for row in figures["clients"]:
        if row["client"] in last:
            row["personalised_perplexity"] = total(last[row["client"]].scores.values()).perplexity
    scored = [row["personalised_perplexity"] for row in figures["clients"] if "personalised_perplexity" in row]
    figures["personalised_perplexity"] = geometric_mean(scored)


def result(replies: dict[int, PrepareReply], last: dict[int, EvaluateReply]) -> dict[str, Any]:
    """Set every client's perplexity with the mixture beside the backbone's; a client without last scores has none."""
    clients = []
    for client, reply in sorted(replies.items()):
        before = total(reply.scores.values())
        row: dict[str, Any] = {
            "client": client,
            "quantization": reply.quantization,
            "tasks": reply.tasks,
            "num_training_examples": int(reply.counts.sum()),
            "data": asdict(reply.data_counts),
            "num_examples": before.num_examples,
            "num_tokens": before.num_tokens,
            "backbone_perplexity": before.perplexity,
            "backbone_bits_per_character": before.bits_per_character,
        }
        if client in last:
            after = total(last[client].scores.values())
            row |= {"perplexity": after.perplexity, "bits_per_character": after.bits_per_character}
        clients.append(row)
    scored = [row for row in clients if "perplexity" in row]
    return {
        "clients": clients,
        "data": asdict(over_all_clients([reply.data_counts for reply in replies.values()])),
        "backbone_perplexity": geometric_mean(row["backbone_perplexity"] for row in scored),
        "perplexity": geometric_mean(row["perplexity"] for row in scored),
    }


def result_by_task(replies: dict[int, PrepareReply], last: dict[int, EvaluateReply]) -> list[dict[str, Any]]:
    """Set every task's perplexity over all clients beside the backbone's, with the experts' mean weights.

    A client counts for the tasks that it scored both times.
    """
    rows = []
    for task in sorted({task for reply in last.values() for task in reply.scores}):
        holders = [client for client, reply in last.items() if task in reply.scores and task in replies[client].scores]
        if not holders:
            continue
        mass = np.sum(
            [last[client].expert_use[task] * last[client].scores[task].num_examples for client in holders], axis=0
        )
        before = total(replies[client].scores[task] for client in holders)
        after = total(last[client].scores[task] for client in holders)
        rows.append(
            {
                "task": task,
                "num_examples": after.num_examples,
                "backbone_perplexity": before.perplexity,
                "perplexity": after.perplexity,
                "expert_use": (mass / after.num_examples).tolist(),
            }
        )
    return rows
