"""Nodes that take no part in a run yet: asked what they are while its rounds go on, and taken in when they tell."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from common.wire.message_bytes import message_bytes
from common.wire.preparation import PREPARE, PrepareReply
from server.exchange import in_one_line
from server.preparation import Preparation, question, read_reply, refuse
from server.restarted import Sent, without_their_nodes
from server.run_directory import ALONE, RunDirectory

log = logging.getLogger("flwr.fedmops")

GONE_SECONDS = 120.0  # a node that was killed is back in some, a machine in a minute or two


@dataclass
class Newcomers:
    """Asks nodes that came late, went away in the first exchange, or were refused: these after ever longer rests.

    What a node has told is checked as in the first exchange. Gate and its statistics stay as they are.
    """

    preparation: Preparation
    directory: RunDirectory
    timeout_seconds: float
    measures: Sequence[str] = ()
    bytes_down: int = 0  # of the last look
    bytes_up: int = 0
    _asked: dict[str, Sent] = field(default_factory=dict)  # by message id
    _refused: dict[int, int] = field(default_factory=dict)  # node -> how often
    _back: dict[int, int] = field(default_factory=dict)  # node -> the round in which it is asked again
    _away_since: dict[int, float] = field(default_factory=dict)  # time.time(), by client

    def __post_init__(self) -> None:
        """Wait on for those who may yet reply to the first exchange; rest the others that failed in it."""
        now = time.time()
        self._asked |= {key: Sent(node, now) for key, node in self.preparation.unanswered.items()}
        for node in self.preparation.failed.get(PREPARE, {}):
            if node not in self.preparation.unanswered.values():
                self._rest(node, 0)

    def look(self, grid: Grid, server_round: int) -> list[int]:
        """Take in who has told what it is, ask who has not been asked; return the clients that are new."""
        self.bytes_down = self.bytes_up = 0
        online, now = set(grid.get_node_ids()), time.time()
        away = {client for client, node in self.preparation.nodes.items() if node not in online}
        self._away_since = {client: self._away_since.get(client, now) for client in away}
        lost = without_their_nodes(grid, self._asked)
        replies = grid.pull_messages(list(self._asked)) if self._asked else []
        taken = [
            self._take(self._asked.pop(reply.metadata.reply_to_message_id).node, reply, server_round)
            for reply in replies
        ]
        self._asked = {
            key: sent
            for key, sent in self._asked.items()
            if key not in lost and sent.node in online and sent.created_at > now - self.timeout_seconds
        }
        known = {*self.preparation.nodes.values(), *(sent.node for sent in self._asked.values())}
        for node in sorted(online - known):
            if self._back.get(node, 0) <= server_round:
                content = question()
                message = Message(content, dst_node_id=node, message_type=f"query.{PREPARE}")
                grid.push_messages([message])
                self._asked[message.metadata.message_id] = Sent(node, message.metadata.created_at)
                self.bytes_down += message_bytes(content)
        return sorted(client for client in taken if client is not None)

    def _take(self, node: int, message: Message, server_round: int) -> int | None:
        """Take a node in by its reply; return its client, or None where it cannot take part."""
        try:
            reply = self._read(message)
        except Exception as error:  # whatever a node sends, it must not end the run
            log.warning("node %d cannot take part: %s", node, in_one_line(str(error) or type(error).__name__))
            reply = None
        if reply is None:
            self._rest(node, server_round)
            return None
        before = self.preparation.nodes.get(reply.partition)
        self.preparation.take_in(node, reply)
        self.directory.add_scores(server_round, ALONE, reply.partition, reply.scores, reply.measured)
        place = "" if before is None else f", in the place of node {before}"
        log.info("client %d takes part from round %d on%s", reply.partition, server_round, place)
        return reply.partition

    def _read(self, message: Message) -> PrepareReply | None:
        """Read a reply; None where its client was refused, which the log says. Raises for one that is not right."""
        if message.has_error():
            raise RuntimeError(in_one_line(message.error.reason))
        self.bytes_up += message_bytes(message.content)
        # A client that comes with another key, and so as another node, takes the place of one that is gone for good.
        long_ago = time.time() - GONE_SECONDS
        free = {client for client, since in self._away_since.items() if since < long_ago}
        reply = read_reply(message.content, self.measures, self.preparation.nodes.keys() - free)
        return None if refuse(reply, next(iter(self.preparation.replies.values()))) else reply

    def _rest(self, node: int, server_round: int) -> None:
        self._refused[node] = self._refused.get(node, 0) + 1
        self._back[node] = server_round + 2 ** self._refused[node]
