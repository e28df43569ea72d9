"""The strategy: who trains in a round, how updates are merged, what is kept of every client."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from common.config import Aggregation, WireFormat
from common.mixture_arrays import Arrays
from common.mixture_spec import Spec
from common.perplexity import geometric_mean, total
from common.wire.rounds import EvaluateReply, TrainReply, unpack_evaluate_reply, unpack_train_reply
from server.client_mixtures import ClientMixtures
from server.exchange import Exchanged, exchange
from server.expert_use import gate_figures
from server.run_directory import RunDirectory
from server.update_check import check_evaluate_reply, check_measured, check_update

log = logging.getLogger("flwr.fedmops")


def num_trainers(client_fraction: float, num_clients: int) -> int:
    """Return how many clients train in a round."""
    return max(1, round(client_fraction * num_clients))


@dataclass(frozen=True)
class Outcome:
    """The mixtures at the end of the rounds, and what the clients last said of them."""

    mixtures: ClientMixtures
    last: dict[int, EvaluateReply]


@dataclass(frozen=True)
class MixtureStrategy:
    """Federate a mixture, or a baseline: seeded sampling, checked updates, weighted means, every client's figures kept.

    Not a subclass of Flower's Strategy: its loop hands replies over only when all are in, and keeps weighted means
    alone.
    `nodes` maps clients (partitions) to node ids, `card` is saved beside the mixture.
    """

    spec: Spec
    card: dict[str, Any]
    nodes: Mapping[int, int]
    client_fraction: float
    seed: int
    timeout_seconds: float
    centralised: bool = False
    aggregation: Aggregation = "usage"
    wire_format: WireFormat = "float32"
    measures: Sequence[str] = ()  # beyond perplexity, after the last round
    quorum: float = 1.0  # share of the clients asked whose replies a round waits for

    def run(self, grid: Grid, arrays: Arrays, num_rounds: int, directory: RunDirectory) -> Outcome:
        """Run the rounds; return the mixtures and what the clients last said of them.

        Everything is in the run directory after each round; a run that is resumed goes on after the last one there.
        What trains nothing is scored once. Raises RuntimeError when a round has no usable reply.
        """
        mixtures = ClientMixtures(arrays, self.aggregation, self.wire_format)
        last_round = 0
        if directory.checkpoint is not None:
            last_round, mixtures.shared = directory.checkpoint.server_round, directory.checkpoint.shared
            mixtures.own = dict(directory.checkpoint.own)
            log.info("going on after round %d", last_round)
        evaluated: Exchanged[EvaluateReply] = Exchanged()
        for server_round in range(last_round + 1, num_rounds + 1):
            started = time.monotonic()
            figures: dict[str, Any] = {"round": server_round}
            trained: Exchanged[TrainReply] = Exchanged()
            if self.spec.trainable():
                trained = self.train(grid, server_round, mixtures, self.sample(server_round), directory)
                mixtures.merge(trained.replies)
                self.save(mixtures, server_round, directory)
                figures["loss"] = fmean(update.loss for update in trained.replies.values())
            measures = self.measures if server_round == num_rounds else ()
            evaluated = self.evaluate(grid, server_round, mixtures, "mixture", directory, measures)
            clients = [total(reply.scores.values()) for reply in evaluated.replies.values()]
            figures |= {
                "perplexity": geometric_mean(client.perplexity for client in clients),
                "bits_per_character": total(clients).bits_per_character,
                "num_clients_trained": len(trained.replies),
                "num_clients_evaluated": len(evaluated.replies),
                "failed": {"train": trained.failures, "evaluate": evaluated.failures},
                "bytes_down": trained.bytes_down + evaluated.bytes_down,
                "bytes_up": trained.bytes_up + evaluated.bytes_up,
                "seconds": time.monotonic() - started,
            }
            if self.spec.has_gate:
                figures |= gate_figures(trained.replies.values(), evaluated.replies.values(), self.spec.num_gated)
            directory.add_round(figures)
            if server_round < num_rounds:  # the last round's scores make the result: it would be run again
                directory.save_checkpoint(server_round, mixtures.shared, mixtures.own)
            log.info(
                "round %d of %d: loss %.3f, perplexity %.3f, %d clients, %.2f MB down, %.2f MB up, %.1f s",
                server_round,
                num_rounds,
                figures.get("loss", math.nan),
                figures["perplexity"],
                len(trained.replies),
                figures["bytes_down"] / 1e6,
                figures["bytes_up"] / 1e6,
                figures["seconds"],
            )
        return Outcome(mixtures, evaluated.replies)

    def personalise(self, grid: Grid, outcome: Outcome, server_round: int, directory: RunDirectory) -> Outcome:
        """Have every client train on from its mixture, for itself alone; return the mixtures and their scores.

        A client that fails keeps what it had.
        """
        mixtures = ClientMixtures(outcome.mixtures.shared, "none", self.wire_format)
        mixtures.own |= outcome.mixtures.own
        mixtures.merge(self.train(grid, server_round, mixtures, self.nodes, directory).replies)
        self.save(mixtures, server_round, directory)
        return Outcome(mixtures, self.evaluate(grid, server_round, mixtures, "personal", directory).replies)

    def save(self, mixtures: ClientMixtures, server_round: int, directory: RunDirectory) -> None:
        """Save the mixture that all share, unless nobody works with it, and those of their own."""
        described = self.card | ({"server_round": server_round} if "server_round" in self.card else {})
        for client in mixtures.own:
            directory.save_mixture(mixtures.own[client], described, client)
        if self.aggregation != "none":
            directory.save_mixture(mixtures.shared, described)

    def sample(self, server_round: int) -> dict[int, int]:
        """Choose the clients that train in a round, by seed and round alone; one alone for all if centralised."""
        clients = sorted(self.nodes)
        if self.centralised:
            return {clients[0]: self.nodes[clients[0]]}
        count = num_trainers(self.client_fraction, len(clients))
        chosen = np.random.default_rng([self.seed, server_round]).choice(len(clients), count, replace=False)
        return {clients[index]: self.nodes[clients[index]] for index in sorted(chosen)}

    def train(
        self,
        grid: Grid,
        server_round: int,
        mixtures: ClientMixtures,
        nodes: Mapping[int, int],
        directory: RunDirectory,
    ) -> Exchanged[TrainReply]:
        """Have clients train; return the updates that pass the check."""

        def read(content: RecordDict) -> TrainReply:
            update = unpack_train_reply(content)
            check_update(update, self.spec)
            return update

        exchanged = exchange(
            grid,
            MessageType.TRAIN,
            mixtures.instructions(server_round, self.spec.tasks, nodes),
            nodes,
            self.timeout_seconds,
            read,
            lambda client, update: directory.add_training(server_round, client, update),
            quorum=self.quorum,
        )
        if not exchanged.replies:
            raise RuntimeError(f"round {server_round}: no client sent an update that can be merged; {_why(exchanged)}")
        return exchanged

    def evaluate(
        self,
        grid: Grid,
        server_round: int,
        mixtures: ClientMixtures,
        phase: str,
        directory: RunDirectory,
        measures: Sequence[str] = (),
    ) -> Exchanged[EvaluateReply]:
        """Have all clients evaluate; return their scores and expert use by task, and `measures`."""

        def read(content: RecordDict) -> EvaluateReply:
            reply = unpack_evaluate_reply(content, self.spec.num_experts)
            check_evaluate_reply(reply, self.spec)
            check_measured(reply.measured, reply.scores, measures)
            return reply

        exchanged = exchange(
            grid,
            MessageType.EVALUATE,
            mixtures.instructions(server_round, self.spec.tasks, self.nodes),
            self.nodes,
            self.timeout_seconds,
            read,
            lambda client, reply: directory.add_scores(server_round, phase, client, reply.scores, reply.measured),
            quorum=self.quorum,
        )
        if not exchanged.replies:
            raise RuntimeError(f"round {server_round}: no client sent its scores; {_why(exchanged)}")
        return exchanged


def _why(exchanged: Exchanged[TrainReply] | Exchanged[EvaluateReply]) -> str:
    client, reason = next(iter(exchanged.failures.items()))
    return f"client {client}: {reason}"
