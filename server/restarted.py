"""Messages whose nodes were started again after they were sent: nobody will answer them.

Flower fails a message when its node is away while somebody asks for the reply; of a node that is back before that, as
after a crash (client/supernode.py), it waits for ever.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from flwr.serverapp import Grid


class Sent(NamedTuple):
    """A message's node, and when it was made (time.time())."""

    node: int
    created_at: float


def without_their_nodes(grid: Grid, messages: Mapping[str, Sent]) -> set[str]:
    """Return the ids of the messages whose nodes were started after they were made.

    ServerApp and SuperLink go by the clock of the same machine.
    """
    started = {
        info.node_id: datetime.fromisoformat(info.last_activated_at).timestamp()
        for info in grid.get_nodes()
        if info.last_activated_at
    }
    return {key for key, sent in messages.items() if started.get(sent.node, 0.0) > sent.created_at}
