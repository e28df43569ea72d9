"""Nodes that take no part in a run yet: asked what they are while its rounds go on, and taken in when they tell."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from common.wire.preparation import PREPARE, PrepareReply
from server.attendance import Waited
from server.exchange import in_one_line
from server.preparation import Preparation, question, read_reply, refuse
from server.run_directory import RunDirectory

log = logging.getLogger("flwr.fedmops")


@dataclass
class Newcomers:
    """Asks nodes that came late, went away in the first exchange, or were refused: these after ever longer rests.

    What a node has told is checked as in the first exchange. Gate and its statistics stay as they are.
    """

    preparation: Preparation
    directory: RunDirectory
    timeout_seconds: float
    measures: Sequence[str] = ()
    _asked: dict[str, Waited] = field(default_factory=dict)  # by message id
    _refused: dict[int, int] = field(default_factory=dict)  # node -> how often
    _back: dict[int, int] = field(default_factory=dict)  # node -> the round in which it is asked again

    def __post_init__(self) -> None:
        """Wait on for those who may yet reply to the first exchange; rest the others that failed in it."""
        now = time.monotonic()
        self._asked |= {key: Waited(node, now) for key, node in self.preparation.unanswered.items()}
        for node in self.preparation.failed.get(PREPARE, {}):
            if node not in self.preparation.unanswered.values():
                self._rest(node, 0)

    def look(self, grid: Grid, server_round: int) -> list[int]:
        """Take in who has told what it is, ask who has not been asked; return the clients that are new."""
        replies = grid.pull_messages(list(self._asked)) if self._asked else []
        taken = [
            self._take(grid, self._asked.pop(reply.metadata.reply_to_message_id).client, reply, server_round)
            for reply in replies
        ]
        online, long_ago = set(grid.get_node_ids()), time.monotonic() - self.timeout_seconds
        self._asked = {
            key: waited for key, waited in self._asked.items() if waited.client in online and waited.sent > long_ago
        }
        known = {*self.preparation.nodes.values(), *(waited.client for waited in self._asked.values())}
        for node in sorted(online - known):
            if self._back.get(node, 0) <= server_round:
                message = Message(question(), dst_node_id=node, message_type=f"query.{PREPARE}")
                grid.push_messages([message])
                self._asked[message.metadata.message_id] = Waited(node, time.monotonic())
        return sorted(client for client in taken if client is not None)

    def _take(self, grid: Grid, node: int, message: Message, server_round: int) -> int | None:
        """Take a node in by its reply; return its client, or None where it cannot take part."""
        try:
            reply = self._read(grid, message)
        except Exception as error:  # whatever a node sends, it must not end the run
            log.warning("node %d cannot take part: %s", node, in_one_line(str(error) or type(error).__name__))
            reply = None
        if reply is None:
            self._rest(node, server_round)
            return None
        self.preparation.take_in(node, reply)
        self.directory.add_scores(server_round, "backbone", reply.partition, reply.scores, reply.measured)
        log.info("client %d takes part from round %d on", reply.partition, server_round)
        return reply.partition

    def _read(self, grid: Grid, message: Message) -> PrepareReply | None:
        """Read a reply; None where its client was refused, which the log says. Raises for one that is not right."""
        if message.has_error():
            raise RuntimeError(in_one_line(message.error.reason))
        # A client that comes with another key, and so as another node, takes the place of the one that is gone.
        online = set(grid.get_node_ids())
        claimed = {client for client, node in self.preparation.nodes.items() if node in online}
        reply = read_reply(message.content, self.measures, claimed)
        return None if refuse(reply, next(iter(self.preparation.replies.values()))) else reply

    def _rest(self, node: int, server_round: int) -> None:
        self._refused[node] = self._refused.get(node, 0) + 1
        self._back[node] = server_round + 2 ** self._refused[node]
