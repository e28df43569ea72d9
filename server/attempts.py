"""Exchanges that are made again, with those whose answers are needed: nodes may be starting again."""

import logging
from collections.abc import Callable, Mapping

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.poll import poll
from server.attendance import RETURN_SECONDS
from server.exchange import Exchanged, Reply, exchange

log = logging.getLogger("flwr.fedmops")

LONGEST_RETURN_SECONDS = 120.0  # of nodes that can be done without


def exchange_again(
    grid: Grid,
    message_type: str,
    contents: Mapping[int, RecordDict],
    nodes: Mapping[int, int],
    timeout_seconds: float,
    read: Callable[[RecordDict], Reply],
    on_reply: Callable[[int, Reply], None],
    whom: Callable[[Exchanged[Reply]], set[int]],
    attempts: int,
    who: str = "client",
    quorum: float = 1.0,
) -> Exchanged[Reply]:
    """Exchange messages as `exchange` does; return what came of all attempts together.

    `whom` tells, after each, which clients are to be asked again.
    """
    result: Exchanged[Reply] = Exchanged()
    asked = dict(nodes)
    for attempt in range(1, attempts + 1):
        result.add(exchange(grid, message_type, contents, asked, timeout_seconds, read, on_reply, who, quorum))
        asked = {client: nodes[client] for client in sorted(whom(result))}
        if not asked or attempt == attempts:
            break
        log.warning("%s: attempt %d of %d follows, with %d clients", message_type, attempt + 1, attempts, len(asked))
        limit = min(timeout_seconds, LONGEST_RETURN_SECONDS) if result.replies else timeout_seconds
        if not wait_for_return(grid, set(asked.values()), limit):
            break
    return result


def wait_for_return(grid: Grid, nodes: set[int], timeout_seconds: float) -> bool:
    """Wait until one of these nodes is connected, and a little for the others; return False where none comes."""
    is_back = poll(lambda: not nodes.isdisjoint(grid.get_node_ids()), timeout_seconds)
    if is_back:
        poll(lambda: nodes.issubset(grid.get_node_ids()), RETURN_SECONDS)
    return is_back
