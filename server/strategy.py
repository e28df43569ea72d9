"""The strategy: who trains in a round, how updates are merged, what is kept of every client."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from common.mixture_arrays import Arrays
from common.mixture_file import card
from common.mixture_spec import MixtureSpec
from common.perplexity import geometric_mean, total
from common.wire.rounds import EvaluateReply, TrainReply, instruction, unpack_evaluate_reply, unpack_train_reply
from server.aggregation import UsageWeightedMean
from server.exchange import Exchanged, exchange
from server.expert_use import share_of_experts, task_expert_information, use_by_task
from server.run_directory import RunDirectory
from server.update_check import check_evaluate_reply, check_update

log = logging.getLogger("flwr.fedmops")


@dataclass(frozen=True)
class MixtureStrategy:
    """Federate a mixture: seeded sampling, checked updates, usage-weighted means, every client's figures kept.

    Not a subclass of Flower's Strategy: its loop hands replies over only when all are in, and keeps weighted means
    alone.
    `nodes` maps clients (partitions) to node ids.
    """

    spec: MixtureSpec
    nodes: Mapping[int, int]
    client_fraction: float
    seed: int
    timeout_seconds: float
    backbone: str
    fingerprint: str
    centralised: bool = False

    def run(
        self, grid: Grid, arrays: Arrays, num_rounds: int, directory: RunDirectory
    ) -> tuple[Arrays, dict[int, EvaluateReply]]:
        """Run the rounds; return the mixture and what the clients last said of it.

        Everything is in the run directory after each round. Raises RuntimeError when a round has no usable reply.
        """
        last: dict[int, EvaluateReply] = {}
        for server_round in range(1, num_rounds + 1):
            started = time.monotonic()
            trained = self.train(grid, server_round, arrays, directory)
            mean = UsageWeightedMean()
            for update in trained.replies.values():
                mean.add(update)
            arrays = mean.merge_into(arrays)
            directory.save_mixture(arrays, card(self.spec, self.backbone, self.fingerprint, server_round))
            evaluated = self.evaluate(grid, server_round, arrays, directory)
            last = evaluated.replies
            clients = [total(reply.scores.values()) for reply in last.values()]
            use = use_by_task(last.values())
            share = share_of_experts(use)
            gated = {task: mass[: self.spec.num_gated] for task, mass in use.items()}
            figures = {
                "round": server_round,
                "loss": float(np.mean([update.loss for update in trained.replies.values()])),
                "perplexity": geometric_mean(client.perplexity for client in clients),
                "bits_per_character": total(clients).bits_per_character,
                "num_clients_trained": len(trained.replies),
                "num_clients_evaluated": len(last),
                "failed": {"train": trained.failures, "evaluate": evaluated.failures},
                "bytes_down": trained.bytes_down + evaluated.bytes_down,
                "bytes_up": trained.bytes_up + evaluated.bytes_up,
                "seconds": time.monotonic() - started,
                "expert_use": share.tolist(),
                "smallest_expert_use": float(share.min()),
                "task_expert_information": task_expert_information(gated),
                "gate_entropy": float(np.mean([update.gate_entropy for update in trained.replies.values()])),
            }
            directory.add_round(figures)
            log.info(
                "round %d of %d: loss %.3f, perplexity %.3f, %d clients, %.2f MB down, %.2f MB up, %.1f s",
                server_round,
                num_rounds,
                figures["loss"],
                figures["perplexity"],
                len(trained.replies),
                figures["bytes_down"] / 1e6,
                figures["bytes_up"] / 1e6,
                figures["seconds"],
            )
        return arrays, last

    def sample(self, server_round: int) -> dict[int, int]:
        """Choose the clients that train in a round, by seed and round alone; one alone for all if centralised."""
        clients = sorted(self.nodes)
        if self.centralised:
            return {clients[0]: self.nodes[clients[0]]}
        count = max(1, round(self.client_fraction * len(clients)))
        chosen = np.random.default_rng([self.seed, server_round]).choice(len(clients), count, replace=False)
        return {clients[index]: self.nodes[clients[index]] for index in sorted(chosen)}

    def train(self, grid: Grid, server_round: int, arrays: Arrays, directory: RunDirectory) -> Exchanged[TrainReply]:
        """Have the sampled clients train; return the updates that pass the check."""

        def read(content: RecordDict) -> TrainReply:
            update = unpack_train_reply(content)
            check_update(update, self.spec)
            return update

        exchanged = exchange(
            grid,
            MessageType.TRAIN,
            instruction(server_round, arrays, self.spec.tasks),
            self.sample(server_round),
            self.timeout_seconds,
            read,
            lambda client, update: directory.add_training(server_round, client, update),
        )
        if not exchanged.replies:
            raise RuntimeError(f"round {server_round}: no client sent an update that can be merged; {_why(exchanged)}")
        return exchanged

    def evaluate(
        self, grid: Grid, server_round: int, arrays: Arrays, directory: RunDirectory
    ) -> Exchanged[EvaluateReply]:
        """Have all clients evaluate the merged mixture; return their scores and expert use by task."""

        def read(content: RecordDict) -> EvaluateReply:
            reply = unpack_evaluate_reply(content, self.spec.num_experts)
            check_evaluate_reply(reply, self.spec)
            return reply

        exchanged = exchange(
            grid,
            MessageType.EVALUATE,
            instruction(server_round, arrays, self.spec.tasks),
            self.nodes,
            self.timeout_seconds,
            read,
            lambda client, reply: directory.add_scores(server_round, "mixture", client, reply.scores),
        )
        if not exchanged.replies:
            raise RuntimeError(f"round {server_round}: no client sent its scores; {_why(exchanged)}")
        return exchanged


def _why(exchanged: Exchanged[TrainReply] | Exchanged[EvaluateReply]) -> str:
    client, reason = next(iter(exchanged.failures.items()))
    return f"client {client}: {reason}"
