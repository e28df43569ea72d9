"""Before round 1: who takes part, the backbone's own scores, the gate's statistics."""

import logging
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.wire.preparation import PREPARE, PrepareReply, unpack_prepare_reply
from common.wire.rounds import instruction
from server.attempts import exchange_again
from server.exchange import Exchanged
from server.run_directory import ALONE, RunDirectory
from server.update_check import check_measured, check_prepare_reply

log = logging.getLogger("flwr.fedmops")


@dataclass
class Preparation:
    """Who takes part, and what it took to find out."""

    nodes: dict[int, int] = field(default_factory=dict)  # client -> node id
    replies: dict[int, PrepareReply] = field(default_factory=dict)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)  # exchange -> node or client -> reason
    bytes_down: int = 0
    bytes_up: int = 0
    unanswered: dict[str, int] = field(default_factory=dict)  # message id -> node that has not told yet
    known_tasks: frozenset[str] | None = None  # of a run that is resumed: its mixture was made for these
    gone: set[int] = field(default_factory=set)  # clients that went away since, and did not come back

    def take_in(self, node: int, reply: PrepareReply) -> None:
        """Let a client take part."""
        self.nodes[reply.partition] = node
        self.replies[reply.partition] = reply

    @property
    def tasks(self) -> set[str]:
        """All tasks that a client trains on, when the run begins."""
        if self.known_tasks is not None:
            return set(self.known_tasks)
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
    quorum: float = 1.0,
    attempts: int = 1,
) -> Preparation:
    """Make the first exchange. Raises RuntimeError when no client is left."""
    preparation = first_exchange(grid, nodes, timeout_seconds, directory, measures, quorum, attempts)
    if not preparation.nodes:
        raise RuntimeError(f"no client could prepare: {next(iter(preparation.failed[PREPARE].values()))}")
    return preparation


def first_exchange(
    grid: Grid,
    nodes: Sequence[int],
    timeout_seconds: float,
    directory: RunDirectory,
    measures: Sequence[str] = (),
    quorum: float = 1.0,
    attempts: int = 1,
) -> Preparation:
    """Ask all nodes what they are, and `measures` of the backbone alone; those that went away with it, again.

    A client whose backbone differs from most of the others', or who claims a partition that is taken, is left out and
    named in the log.
    """
    claimed: set[int] = set()

    def read(content: RecordDict) -> PrepareReply:
        reply = read_reply(content, measures, claimed)
        claimed.add(reply.partition)
        return reply

    exchanged = exchange_again(
        grid,
        f"query.{PREPARE}",
        dict.fromkeys(nodes, question()),
        {node: node for node in nodes},
        timeout_seconds,
        read,
        lambda _, reply: directory.add_scores(0, ALONE, reply.partition, reply.scores, reply.measured),
        lambda so_far: so_far.lost,
        attempts,
        who="node",
        quorum=quorum,
    )
    usual = _most_common_backbone(list(exchanged.replies.values()))
    preparation = Preparation(unanswered=exchanged.unanswered)
    for node, reply in sorted(exchanged.replies.items(), key=lambda item: item[1].partition):
        if refusal := refuse(reply, usual):
            exchanged.failures[node] = refusal
        else:
            preparation.take_in(node, reply)
    preparation.count(PREPARE, exchanged)
    return preparation


def question() -> RecordDict:
    """Return what a node is asked."""
    return instruction(server_round=0)


def read_reply(content: RecordDict, measures: Sequence[str], claimed: Collection[int]) -> PrepareReply:
    """Read and check what a node tells. Raises ValueError where it is not right, or its partition is another's."""
    reply = unpack_prepare_reply(content)
    check_prepare_reply(reply)
    check_measured(reply.measured, reply.scores, measures)
    if reply.partition in claimed:
        raise ValueError(f"partition {reply.partition} is another node's: give each node its own partition-id")
    return reply


def refuse(reply: PrepareReply, usual: PrepareReply | None) -> str | None:
    """Say, in the log, too, why a client cannot take part beside one with the usual backbone; None where it can."""
    if usual is None or _backbone(reply) == _backbone(usual):
        return None
    refusal = f"client {reply.partition} is left out: {difference(reply, usual)}"
    log.warning("%s", refusal)
    return refusal


def _backbone(reply: PrepareReply) -> tuple[Hashable, ...]:
    hashes = reply.fingerprint, reply.weights_hash, reply.tokenizer_hash
    return *hashes, reply.hidden_size, reply.gate_input_size, _kv_shapes(reply)


def _most_common_backbone(replies: Sequence[PrepareReply]) -> PrepareReply | None:
    """Return a reply of those who have the most common backbone; None where nobody replied."""
    count = Counter(map(_backbone, replies))
    return max(replies, key=lambda reply: count[_backbone(reply)], default=None)


def difference(reply: PrepareReply, usual: PrepareReply) -> str:
    """Say in one line in what a client's backbone differs from most clients', and the mend."""
    files = (
        ("weights differ", reply.weights_hash[:8], usual.weights_hash[:8], "config.json and *.safetensors"),
        ("tokenizer differs", reply.tokenizer_hash[:8], usual.tokenizer_hash[:8], "tokenizer.json"),
    )
    told = [
        f"its {what} from most clients' ({own} / {most}): copy {which} from them"
        for what, own, most, which in files
        if own != most
    ]
    of_the_same_files = (
        ("hidden size", reply.hidden_size, usual.hidden_size),
        ("size of the gate's input", reply.gate_input_size, usual.gate_input_size),
        ("shape of keys and values by layer", _kv_shapes(reply), _kv_shapes(usual)),
        ("fingerprint under the run's quantization", reply.fingerprint[:8], usual.fingerprint[:8]),
    )
    for what, own_value, most_value in of_the_same_files:
        if not told and own_value != most_value:
            told.append(
                f"its {what} differs from most clients' ({own_value} / {most_value}), though weights and tokenizer are "
                "the same: install their versions of fedmops and transformers"
            )
    return "; ".join(told)


def _kv_shapes(reply: PrepareReply) -> tuple[tuple[int, tuple[int, int, int]], ...]:
    return tuple(sorted(reply.kv_shapes.items()))
