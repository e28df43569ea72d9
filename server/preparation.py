"""Before round 1: who takes part, the backbone's own scores, the gate's statistics, the first mixture."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.config import Config
from common.mixture_arrays import GATE_STATISTICS, Arrays, MixtureShape, initial_arrays
from common.projection import projection
from common.wire import MOMENTS, PREPARE, PrepareReply, instruction, unpack_moments, unpack_prepare_reply
from server.exchange import exchange
from server.gate_fit import fit_gate, standardise, sum_statistics
from server.run_directory import RunDirectory

log = logging.getLogger("flwr.fedmops")


def prepare_clients(
    grid: Grid, nodes: Sequence[int], timeout_seconds: float, directory: RunDirectory
) -> dict[int, tuple[int, PrepareReply]]:
    """Ask all nodes what they are; return client -> (node id, reply), sorted by client.

    A client whose backbone differs from most of the others', or who claims a partition that is taken, is left out and
    named in the log. Raises RuntimeError when nobody is left.
    """
    claimed: set[int] = set()

    def read(content: RecordDict) -> PrepareReply:
        reply = unpack_prepare_reply(content)
        if reply.partition in claimed:
            raise ValueError(f"partition {reply.partition} is another node's: give each node its own partition-id")
        claimed.add(reply.partition)
        return reply

    exchanged = exchange(
        grid,
        f"query.{PREPARE}",
        instruction(server_round=0),
        dict(enumerate(nodes)),
        timeout_seconds,
        read,
        lambda _, reply: directory.add_scores(0, "backbone", reply.partition, reply.scores),
    )
    if not exchanged.replies:
        raise RuntimeError(f"no client could prepare: {next(iter(exchanged.failures.values()))}")
    usual, _ = Counter(reply.fingerprint for reply in exchanged.replies.values()).most_common(1)[0]
    kept = {}
    for index, reply in exchanged.replies.items():
        if reply.fingerprint != usual:
            log.warning(
                "client %d is left out: its backbone's fingerprint is %s, most others' %s; give it the same weights, "
                "tokenizer and quantization",
                reply.partition,
                reply.fingerprint,
                usual,
            )
        else:
            kept[reply.partition] = (nodes[index], reply)
    return dict(sorted(kept.items()))


def mixture_shape(config: Config, reply: PrepareReply) -> MixtureShape:
    """Return the shapes of the run's mixture on the clients' backbone."""
    return MixtureShape(
        num_experts=config.num_experts,
        tokens_per_expert=config.tokens_per_expert,
        gate_hidden_size=config.gate_hidden_size,
        hidden_size=reply.hidden_size,
        kv_shapes=reply.kv_shapes,
    )


def first_mixture(
    grid: Grid, config: Config, shape: MixtureShape, prepared: Mapping[int, tuple[int, PrepareReply]]
) -> Arrays:
    """Draw the mixture's first values; standardise its gate's input; pre-train the gate on the clients' moments."""
    rng = np.random.default_rng(config.seed)
    arrays = initial_arrays(shape, rng)
    if shape.num_experts == 1:
        return arrays
    arrays = standardise(arrays, sum_statistics([reply for _, reply in prepared.values()]))
    if not config.pretrain_gate:
        return arrays
    exchanged = exchange(
        grid,
        f"query.{MOMENTS}",
        instruction(0, {name: arrays[name] for name in GATE_STATISTICS}),
        {client: node for client, (node, _) in prepared.items()},
        config.round_timeout_seconds,
        unpack_moments,
        lambda client, moments: None,
    )
    if not exchanged.replies:
        raise RuntimeError(f"no client sent its moments: {next(iter(exchanged.failures.values()))}")
    # A client that fell silent between the two exchanges counts in neither of the sums that the fit compares.
    statistics = sum_statistics([prepared[client][1] for client in exchanged.replies])
    moments = np.sum(list(exchanged.replies.values()), axis=0)
    return fit_gate(
        arrays, shape, statistics, moments, projection(shape.hidden_size, config.seed), config.temperature, rng
    )
