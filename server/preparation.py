"""Before round 1: who takes part, the backbone's own scores, the gate's statistics."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.wire.preparation import PREPARE, PrepareReply, unpack_prepare_reply
from common.wire.rounds import instruction
from server.exchange import Exchanged, exchange
from server.run_directory import RunDirectory
from server.update_check import check_measured, check_prepare_reply

log = logging.getLogger("flwr.fedmops")


@dataclass
class Preparation:
    """Who takes part, sorted by client, and what it took to find out."""

    nodes: dict[int, int] = field(default_factory=dict)  # client -> node id
    replies: dict[int, PrepareReply] = field(default_factory=dict)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)  # exchange -> node or client -> reason
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def tasks(self) -> set[str]:
        """All tasks that a client trains on."""
        return {task for reply in self.replies.values() for task in reply.tasks}

    def count(self, name: str, exchanged: Exchanged[Any]) -> None:
        """Add an exchange's traffic and failures."""
        self.failed[name] = self.failed.get(name, {}) | exchanged.failures
        self.bytes_down += exchanged.bytes_down
        self.bytes_up += exchanged.bytes_up


def prepare_clients(
    grid: Grid,
    nodes: Sequence[int],
    timeout_seconds: float,
    directory: RunDirectory,
    measures: Sequence[str] = (),
) -> Preparation:
    """Ask all nodes what they are, and `measures` of the backbone alone.

    A client whose backbone differs from most of the others', or who claims a partition that is taken, is left out and
    named in the log. Raises RuntimeError when nobody is left.
    """
    claimed: set[int] = set()

    def read(content: RecordDict) -> PrepareReply:
        reply = unpack_prepare_reply(content)
        check_prepare_reply(reply)
        check_measured(reply.measured, reply.scores, measures)
        if reply.partition in claimed:
            raise ValueError(f"partition {reply.partition} is another node's: give each node its own partition-id")
        claimed.add(reply.partition)
        return reply

    exchanged = exchange(
        grid,
        f"query.{PREPARE}",
        dict.fromkeys(nodes, instruction(server_round=0)),
        {node: node for node in nodes},
        timeout_seconds,
        read,
        lambda _, reply: directory.add_scores(0, "backbone", reply.partition, reply.scores, reply.measured),
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
                f"most have {usual[0]}: give it the same weights and tokenizer"
            )
            log.warning("%s", exchanged.failures[node])
    preparation.count(PREPARE, exchanged)
    return preparation


def _backbone(reply: PrepareReply) -> tuple[str, int, int, tuple[tuple[int, tuple[int, int, int]], ...]]:
    return reply.fingerprint, reply.hidden_size, reply.gate_input_size, tuple(sorted(reply.kv_shapes.items()))
