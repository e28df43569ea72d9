"""The strategy: who trains in a round, how updates are merged, what is kept of every client."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from common.config import Aggregation, WireFormat
from common.mixture_arrays import Arrays
from common.mixture_spec import Spec
from common.wire.rounds import EvaluateReply, TrainReply, unpack_evaluate_reply, unpack_train_reply
from server.attempts import exchange_again
from server.attendance import Attendance
from server.client_mixtures import ClientMixtures
from server.exchange import Exchanged, Reply
from server.newcomers import Newcomers
from server.round_figures import round_figures, round_line
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
    attempts: int = 1  # how often a round that nobody answers is tried
    newcomers: Newcomers | None = None  # who may yet come to `nodes`

    def run(self, grid: Grid, arrays: Arrays, num_rounds: int, directory: RunDirectory) -> Outcome:
        """Run the rounds; return the mixtures and what the clients last said of them.

        Everything is in the run directory after each round; a run that is resumed goes on after the last one there.
        What trains nothing is scored once. Raises RuntimeError when no attempt at a round has a usable reply.
        """
        mixtures = ClientMixtures(arrays, self.aggregation, self.wire_format)
        attendance = Attendance(self.timeout_seconds)
        last_round = 0
        if directory.checkpoint is not None:
            found = directory.checkpoint
            last_round, mixtures.shared, mixtures.own = found.server_round, found.shared, dict(found.own)
            attendance.failed, attendance.back = dict(found.failed), dict(found.back)
            log.info("going on after round %d", last_round)
        evaluated: Exchanged[EvaluateReply] = Exchanged()
        for server_round in range(last_round + 1, num_rounds + 1):
            evaluated = self.run_round(grid, server_round, num_rounds, mixtures, attendance, directory)
            if server_round < num_rounds:  # the last round's scores make the result: it would be run again
                directory.save_checkpoint(
                    server_round, mixtures.shared, mixtures.own, attendance.failed, attendance.back, self.spec.tasks
                )
        return Outcome(mixtures, evaluated.replies)

    def run_round(
        self,
        grid: Grid,
        server_round: int,
        num_rounds: int,
        mixtures: ClientMixtures,
        attendance: Attendance,
        directory: RunDirectory,
    ) -> Exchanged[EvaluateReply]:
        """Have clients train, merge what they send, have them evaluate that; write the round's figures."""
        started = time.monotonic()
        is_last = server_round == num_rounds
        figures: dict[str, Any] = {"round": server_round, "resting": attendance.resting(server_round)}
        figures["joined"] = self.newcomers.look(grid, server_round) if self.newcomers else []
        late: list[int] = []
        trained: Exchanged[TrainReply] = Exchanged()
        asked: Mapping[int, int] = {}
        if self.spec.trainable():
            online = attendance.gather(grid, self.nodes, self.quorum)
            asked = self.sample(server_round, attendance.present(self.nodes, online, server_round))
            trained = self.train(grid, server_round, mixtures, asked, directory)
            late += attendance.take_late(grid)
            attendance.wait_for(trained.unanswered, started)
            mixtures.merge(trained.replies)
            try:
                self.save(mixtures, server_round, directory)
            except OSError as error:
                if is_last:
                    raise
                log.warning("round %d: its mixture is not on disk (%s)", server_round, error)
        between = time.monotonic()
        online = attendance.gather(grid, self.nodes, self.quorum)
        scorers = attendance.present(self.nodes, online, server_round)
        if is_last:  # it makes the result: also of those who rest, or are late
            scorers = {client: node for client, node in self.nodes.items() if node in online} or scorers
        evaluated = self.evaluate(grid, server_round, mixtures, "mixture", directory, scorers, is_last)
        late += attendance.take_late(grid)
        attendance.wait_for(evaluated.unanswered, between)
        attendance.note(server_round, {*asked, *scorers}, trained.failures.keys() | evaluated.failures.keys())
        figures |= round_figures(trained, evaluated, self.spec)
        if self.newcomers:
            figures["bytes_down"] += self.newcomers.bytes_down
            figures["bytes_up"] += self.newcomers.bytes_up
        figures |= {"away": sorted(attendance.away), "late": sorted(late), "seconds": time.monotonic() - started}
        directory.add_round(figures)
        log.info("%s", round_line(figures, num_rounds))
        return evaluated

    def personalise(self, grid: Grid, outcome: Outcome, server_round: int, directory: RunDirectory) -> Outcome:
        """Have every client train on from its mixture, for itself alone; return the mixtures and their scores.

        A client that fails keeps what it had.
        """
        mixtures = ClientMixtures(outcome.mixtures.shared, "none", self.wire_format)
        mixtures.own |= outcome.mixtures.own
        mixtures.merge(self.train(grid, server_round, mixtures, self.nodes, directory).replies)
        self.save(mixtures, server_round, directory)
        return Outcome(mixtures, self.evaluate(grid, server_round, mixtures, "personal", directory, self.nodes).replies)

    def save(self, mixtures: ClientMixtures, server_round: int, directory: RunDirectory) -> None:
        """Save the mixture that all share, unless nobody works with it, and those of their own."""
        described = self.card | ({"server_round": server_round} if "server_round" in self.card else {})
        for client in mixtures.own:
            directory.save_mixture(mixtures.own[client], described, client)
        if self.aggregation != "none":
            directory.save_mixture(mixtures.shared, described)

    def sample(self, server_round: int, nodes: Mapping[int, int]) -> dict[int, int]:
        """Choose who trains in a round, by seed and round alone, among these; one alone for all if centralised."""
        clients = sorted(nodes)
        if self.centralised:
            return {clients[0]: nodes[clients[0]]}
        count = min(num_trainers(self.client_fraction, len(self.nodes)), len(clients))
        chosen = np.random.default_rng([self.seed, server_round]).choice(len(clients), count, replace=False)
        return {clients[index]: nodes[clients[index]] for index in sorted(chosen)}

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

        def keep(client: int, update: TrainReply) -> None:
            directory.add_training(server_round, client, update)

        contents = mixtures.instructions(server_round, self.spec.tasks, nodes)
        return self._ask(grid, MessageType.TRAIN, server_round, contents, nodes, read, keep)

    def evaluate(
        self,
        grid: Grid,
        server_round: int,
        mixtures: ClientMixtures,
        phase: str,
        directory: RunDirectory,
        nodes: Mapping[int, int],
        is_last: bool = False,
    ) -> Exchanged[EvaluateReply]:
        """Have clients evaluate; return their scores and expert use by task.

        The last evaluation makes the result: measures beyond perplexity are told, and all have their whole time.
        """
        measures = self.measures if is_last else ()

        def read(content: RecordDict) -> EvaluateReply:
            reply = unpack_evaluate_reply(content, self.spec.num_experts)
            check_evaluate_reply(reply, self.spec)
            check_measured(reply.measured, reply.scores, measures)
            return reply

        def keep(client: int, reply: EvaluateReply) -> None:
            directory.add_scores(server_round, phase, client, reply.scores, reply.measured)

        contents = mixtures.instructions(server_round, self.spec.tasks, nodes)
        return self._ask(grid, MessageType.EVALUATE, server_round, contents, nodes, read, keep, is_last)

    def _ask(
        self,
        grid: Grid,
        message_type: str,
        server_round: int,
        contents: Mapping[int, RecordDict],
        nodes: Mapping[int, int],
        read: Callable[[RecordDict], Reply],
        keep: Callable[[int, Reply], None],
        is_last: bool = False,
    ) -> Exchanged[Reply]:
        """Exchange messages, and again where nobody answers at all, or, the last time, with those who went away.

        Raises RuntimeError when every attempt was in vain.
        """
        exchanged = exchange_again(
            grid,
            message_type,
            contents,
            nodes,
            self.timeout_seconds,
            read,
            keep,
            lambda so_far: (so_far.lost if is_last else set()) if so_far.replies else set(nodes),
            self.attempts,
            quorum=1.0 if is_last else self.quorum,
        )
        if not exchanged.replies:
            client, reason = next(iter(exchanged.failures.items()))
            asked_for = "an update that can be merged" if message_type == MessageType.TRAIN else "its scores"
            raise RuntimeError(f"round {server_round}: no client sent {asked_for}; client {client}: {reason}")
        return exchanged
