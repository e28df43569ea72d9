"""Who is asked: not who is away, still works on an earlier message, or rests after failing again and again."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flwr.serverapp import Grid

from common.poll import poll

# Rounds in a row that a client may fail in; then it rests for one round, and twice as long each time it fails again.
FAILURES_BEFORE_REST = 3
LONGEST_REST = 8  # rounds
RETURN_SECONDS = 30.0  # a SuperNode that was killed is back in some, one that was deaf in twice as many


class Waited(NamedTuple):
    """A message whose reply did not come while its round lasted."""

    client: int
    sent: float  # time.monotonic()


@dataclass
class Attendance:
    """What is known of every client: messages that it still owes a reply, rounds that it failed in, when it is back.

    A reply is waited for as long as `timeout_seconds`, though its round may have ended before, by its quorum; until
    then its client is busy, and would find a new message behind the old one.
    """

    timeout_seconds: float
    failed: dict[int, int] = field(default_factory=dict)  # rounds in a row, by client
    back: dict[int, int] = field(default_factory=dict)  # the round in which a client that rests is asked again
    away: set[int] = field(default_factory=set)  # clients whose nodes were not there when it was last looked
    _waited: dict[str, Waited] = field(default_factory=dict)

    def gather(self, grid: Grid, nodes: Mapping[int, int], quorum: float) -> set[int]:
        """Return the nodes that are online. Who has just gone may be starting again, and is waited for, once.

        Not where a share `quorum` of the clients is there without it.
        """

        def away() -> set[int]:
            online = set(grid.get_node_ids())
            return {client for client, node in nodes.items() if node not in online}

        gone = away()
        if len(nodes) - len(gone) < math.ceil(quorum * len(nodes)):
            poll(lambda: away() <= self.away, RETURN_SECONDS)
            gone = away()
        self.away = gone
        return {node for client, node in nodes.items() if client not in gone}

    def present(self, nodes: Mapping[int, int], online: Collection[int], server_round: int) -> dict[int, int]:
        """Return the clients that can be asked, with their nodes; where none can be all that are `online`, or all.

        Who is away has not failed: it is asked again as soon as it is back.
        """
        there = {client: node for client, node in nodes.items() if node in online}
        not_now = self._busy() | set(self.resting(server_round))
        return {client: node for client, node in there.items() if client not in not_now} or there or dict(nodes)

    def resting(self, server_round: int) -> list[int]:
        """Return the clients that rest in a round."""
        return sorted(client for client, back in self.back.items() if back > server_round)

    def wait_for(self, unanswered: Mapping[str, int], sent: float) -> None:
        """Remember messages (id -> client) that were not answered while their round lasted."""
        self._waited |= {message_id: Waited(client, sent) for message_id, client in unanswered.items()}

    def take_late(self, grid: Grid) -> list[int]:
        """Return the clients whose reply came after its round: an error, too, makes them free again, but is none."""
        late = []
        if self._waited:
            for reply in grid.pull_messages(list(self._waited)):
                client = self._waited.pop(reply.metadata.reply_to_message_id).client
                if not reply.has_error():
                    late.append(client)
        return late

    def note(self, server_round: int, asked: Collection[int], failed: Collection[int]) -> None:
        """Take down who failed in a round; who may still reply did not."""
        busy = self._busy()
        for client in asked:
            if client not in failed:
                self.failed.pop(client, None)
                self.back.pop(client, None)
            elif client not in busy:
                self.failed[client] = self.failed.get(client, 0) + 1
                more = self.failed[client] - FAILURES_BEFORE_REST
                if more >= 0:
                    self.back[client] = server_round + 1 + min(2**more, LONGEST_REST)

    def _busy(self) -> set[int]:
        """Forget messages that have waited long enough; return the clients that owe a reply to the others."""
        long_ago = time.monotonic() - self.timeout_seconds
        self._waited = {key: waited for key, waited in self._waited.items() if waited.sent > long_ago}
        return {waited.client for waited in self._waited.values()}
