"""Before round 1: who takes part, the backbone's own scores, the gate's statistics, the first mixture."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.config import Config
from common.mixture_arrays import GATE_STATISTICS, Arrays, MixtureShape, initial_arrays
from common.projection import projection
from common.wire import MOMENTS, PREPARE, PrepareReply, instruction, unpack_moments, unpack_prepare_reply
from server.exchange import Exchanged, exchange
from server.gate_fit import fit_gate, standardise, sum_statistics
from server.run_directory import RunDirectory
from server.update_check import check_prepare_reply

log = logging.getLogger("flwr.fedmops")


@dataclass
class Preparation:
    """Who takes part, sorted by client, and what it took to find out."""

    nodes: dict[int, int] = field(default_factory=dict)  # client -> node id
    replies: dict[int, PrepareReply] = field(default_factory=dict)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)  # exchange -> node or client -> reason
    bytes_down: int = 0
    bytes_up: int = 0

    def count(self, name: str, exchanged: Exchanged[PrepareReply] | Exchanged[NDArray[np.float64]]) -> None:
        """Add an exchange's traffic and failures."""
        self.failed[name] = exchanged.failures
        self.bytes_down += exchanged.bytes_down
        self.bytes_up += exchanged.bytes_up


def prepare_clients(grid: Grid, nodes: Sequence[int], timeout_seconds: float, directory: RunDirectory) -> Preparation:
    """Ask all nodes what they are.

    A client whose backbone differs from most of the others', or who claims a partition that is taken, is left out and
    named in the log. Raises RuntimeError when nobody is left.
    """
    claimed: set[int] = set()

    def read(content: RecordDict) -> PrepareReply:
        reply = unpack_prepare_reply(content)
        check_prepare_reply(reply)
        if reply.partition in claimed:
            raise ValueError(f"partition {reply.partition} is another node's: give each node its own partition-id")
        claimed.add(reply.partition)
        return reply

    exchanged = exchange(
        grid,
        f"query.{PREPARE}",
        instruction(server_round=0),
        {node: node for node in nodes},
        timeout_seconds,
        read,
        lambda _, reply: directory.add_scores(0, "backbone", reply.partition, reply.scores),
        who="node",
    )
    if not exchanged.replies:
        raise RuntimeError(f"no client could prepare: {next(iter(exchanged.failures.values()))}")
    usual, _ = Counter(_backbone(reply) for reply in exchanged.replies.values()).most_common(1)[0]
    preparation = Preparation()
    for node, reply in sorted(exchanged.replies.items(), key=lambda item: item[1].partition):
        if _backbone(reply) == usual:
            preparation.nodes[reply.partition] = node
            preparation.replies[reply.partition] = reply
        else:
            exchanged.failures[node] = (
                f"client {reply.partition} is left out: its backbone has the fingerprint {reply.fingerprint}, "
                f"most have {usual[0]}: give it the same weights, tokenizer and quantization"
            )
            log.warning("%s", exchanged.failures[node])
    preparation.count(PREPARE, exchanged)
    return preparation


def _backbone(reply: PrepareReply) -> tuple[str, int, tuple[tuple[int, tuple[int, int, int]], ...]]:
    return reply.fingerprint, reply.hidden_size, tuple(sorted(reply.kv_shapes.items()))


def mixture_shape(config: Config, reply: PrepareReply) -> MixtureShape:
    """Return the shapes of the run's mixture on the clients' backbone."""
    return MixtureShape(
        num_experts=config.num_experts,
        tokens_per_expert=config.tokens_per_expert,
        gate_hidden_size=config.gate_hidden_size,
        hidden_size=reply.hidden_size,
        kv_shapes=reply.kv_shapes,
    )


def first_mixture(grid: Grid, config: Config, shape: MixtureShape, preparation: Preparation) -> Arrays:
    """Draw the mixture's first values; standardise its gate's input; pre-train the gate on the clients' moments."""
    rng = np.random.default_rng(config.seed)
    arrays = initial_arrays(shape, rng)
    if shape.num_experts == 1:
        return arrays
    arrays = standardise(arrays, sum_statistics(list(preparation.replies.values())))
    if not config.pretrain_gate:
        return arrays
    to_features = projection(shape.hidden_size, config.seed)

    def read(content: RecordDict) -> NDArray[np.float64]:
        moments = unpack_moments(content)
        if len(moments) != len(to_features):
            raise ValueError(f"the moments have size {len(moments)}, expected {len(to_features)}")
        return moments

    exchanged = exchange(
        grid,
        f"query.{MOMENTS}",
        instruction(0, {name: arrays[name] for name in GATE_STATISTICS}),
        preparation.nodes,
        config.round_timeout_seconds,
        read,
        lambda client, moments: None,
    )
    preparation.count(MOMENTS, exchanged)
    if not exchanged.replies:
        raise RuntimeError(f"no client sent its moments: {next(iter(exchanged.failures.values()))}")
    # A client that fell silent between the two exchanges counts in neither of the sums that the fit compares.
    statistics = sum_statistics([preparation.replies[client] for client in exchanged.replies])
    moments = np.sum(list(exchanged.replies.values()), axis=0)
    return fit_gate(arrays, shape, statistics, moments, to_features, config.temperature, rng)
