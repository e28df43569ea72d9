"""Exchanges of the preparation, each counted as a part of it."""

from collections.abc import Callable, Mapping

from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.config import Config
from server.attempts import exchange_again, wait_for_return
from server.exchange import Exchanged, Reply
from server.preparation import Preparation


def ask(
    grid: Grid,
    config: Config,
    preparation: Preparation,
    query: str,
    content: RecordDict,
    nodes: Mapping[int, int],
    read: Callable[[RecordDict], Reply],
) -> Exchanged[Reply]:
    """Make an exchange, again with those who went away with it, and count it as part of the preparation.

    Who did not come back is not asked in the next one.
    """
    there = {client: node for client, node in nodes.items() if client not in preparation.gone} or dict(nodes)
    exchanged = _ask(grid, config, preparation, query, content, there, read, config.round_attempts)
    preparation.gone |= exchanged.lost
    return exchanged


def ask_one(
    grid: Grid,
    config: Config,
    preparation: Preparation,
    query: str,
    content: RecordDict,
    read: Callable[[RecordDict], Reply],
) -> Reply:
    """Ask the clients, one after the other until one answers: all would answer the same.

    Raises RuntimeError when none does.
    """
    for last in (False, True):
        lost = False
        for client, node in preparation.nodes.items():
            exchanged = _ask(grid, config, preparation, query, content, {client: node}, read, attempts=1)
            if exchanged.replies:
                return exchanged.replies[client]
            lost = lost or bool(exchanged.lost)
        if last or not lost:
            break
        wait_for_return(grid, set(preparation.nodes.values()), config.round_timeout_seconds)
    raise RuntimeError(f"no client sent its {query}: {next(iter(preparation.failed[query].values()))}")


def _ask(
    grid: Grid,
    config: Config,
    preparation: Preparation,
    query: str,
    content: RecordDict,
    nodes: Mapping[int, int],
    read: Callable[[RecordDict], Reply],
    attempts: int,
) -> Exchanged[Reply]:
    exchanged = exchange_again(
        grid,
        f"query.{query}",
        dict.fromkeys(nodes, content),
        nodes,
        config.round_timeout_seconds,
        read,
        lambda client, reply: None,
        lambda so_far: so_far.lost,
        attempts,
    )
    preparation.count(query, exchanged)
    return exchanged
