"""One exchange: send messages, read replies as they come, stop at the deadline, say of every node what it did."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.wire.message_bytes import message_bytes
from server.restarted import Sent, without_their_nodes

log = logging.getLogger("flwr.fedmops")

# Between looks for replies: a tenth of a second at first, then a hundredth of the time waited, as each look costs a
# SuperLink some hundredths of a second.
POLL_SECONDS, LONGEST_POLL_SECONDS, POLL_SHARE = 0.1, 1.0, 0.01
LOOK_SECONDS = 2.0  # between looks for nodes that were started again
MAX_REASON_CHARACTERS = 300
Reply = TypeVar("Reply")


@dataclass
class Exchanged(Generic[Reply]):
    """Replies and failures by client, in the clients' order, and the bytes that went down and up.

    `unanswered` are the clients that failed by their silence, by the id of their message; `lost` those whose node or
    host went away with it.
    """

    replies: dict[int, Reply] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0

    def add(self, later: "Exchanged[Reply]") -> None:
        """Add a later exchange with some of the same clients: what it says of a client holds."""
        self.replies = dict(sorted((self.replies | later.replies).items()))
        failures = self.failures | later.failures
        self.failures = {client: failures[client] for client in sorted(failures) if client not in self.replies}
        self.unanswered |= later.unanswered
        self.lost = later.lost
        self.bytes_down += later.bytes_down
        self.bytes_up += later.bytes_up


def exchange(
    grid: Grid,
    message_type: str,
    contents: Mapping[int, RecordDict],
    nodes: Mapping[int, int],
    timeout_seconds: float,
    read: Callable[[RecordDict], Reply],
    on_reply: Callable[[int, Reply], None],
    who: str = "client",
    quorum: float = 1.0,
) -> Exchanged[Reply]:
    """Send each client its content, at `nodes` (client -> node id), and read the replies.

    `read` turns a reply's content into what is wanted and raises for one that is not right; such a reply, an error
    reply and a silent node are failures, each named in the log with its reason. `on_reply(client, reply)` is called for
    every right one as it comes. `who` is the word for the keys of `nodes`. Once a share `quorum` of the clients has
    replied, the others have as long again as that took.
    """
    result: Exchanged[Reply] = Exchanged()
    sent: dict[int, Message] = {}
    bytes_of: dict[int, int] = {}  # by content: mostly it is the same for all
    for client, node in nodes.items():
        content = contents[client]
        if id(content) not in bytes_of:
            bytes_of[id(content)] = message_bytes(content)
        result.bytes_down += bytes_of[id(content)]
        sent[client] = Message(content, dst_node_id=node, message_type=message_type)
    started = time.monotonic()
    limit_seconds = timeout_seconds
    enough = math.ceil(quorum * len(sent))
    grid.push_messages(list(sent.values()))
    # By message, not by the reply's sender: an error reply that Flower writes for a dead node names another.
    waiting = {message.metadata.message_id: client for client, message in sent.items()}
    looked = started

    def fail(client: int, reason: str) -> None:
        result.failures[client] = reason
        log.warning("%s %d failed to %s: %s", who, client, message_type, reason)

    while waiting and time.monotonic() < started + limit_seconds:
        lost: set[str] = set()
        if time.monotonic() > looked + LOOK_SECONDS:
            looked = time.monotonic()
            unsure = (sent[client].metadata for client in waiting.values())
            lost = without_their_nodes(
                grid, {each.message_id: Sent(each.dst_node_id, each.created_at) for each in unsure}
            )
        arrived = list(grid.pull_messages(list(waiting)))
        for message in arrived:
            client = waiting.pop(message.metadata.reply_to_message_id)
            if message.has_error():
                fail(client, in_one_line(message.error.reason))
                if is_lost(message.error):
                    result.lost.add(client)
                continue
            result.bytes_up += message_bytes(message.content)
            try:
                reply = read(message.content)
            except Exception as error:  # whatever a client sends, it must not end the run
                fail(client, f"reply rejected: {in_one_line(str(error) or type(error).__name__)}")
                continue
            result.replies[client] = reply
            on_reply(client, reply)
            if len(result.replies) == enough:
                limit_seconds = min(limit_seconds, 2 * (time.monotonic() - started))
        for message_id in sorted(lost & waiting.keys()):  # and no reply came before
            client = waiting.pop(message_id)
            result.lost.add(client)
            fail(client, "its node was started again, without the message")
        if not arrived:
            waited = time.monotonic() - started
            time.sleep(min(max(POLL_SECONDS, POLL_SHARE * waited), LONGEST_POLL_SECONDS))
    for client in waiting.values():
        fail(client, f"no reply within {limit_seconds:.3g} s")
    result.unanswered = waiting
    log.info(
        "%s: %d of %d clients replied; %d bytes down and %d up in all",
        message_type,
        len(result.replies),
        len(sent),
        result.bytes_down,
        result.bytes_up,
    )
    # Sums must not depend on who was first.
    result.replies = dict(sorted(result.replies.items()))
    result.failures = dict(sorted(result.failures.items()))
    return result


def wait_for_nodes(grid: Grid, num_nodes: int, timeout_seconds: float, quorum: float = 1.0) -> list[int]:
    """Wait until `num_nodes` nodes are connected; return all, sorted.

    Where some do not come in time, a share `quorum` of them is enough; raises TimeoutError where there are fewer.
    """
    deadline = time.monotonic() + timeout_seconds
    while len(nodes := sorted(grid.get_node_ids())) < num_nodes:
        if time.monotonic() >= deadline:
            told = f"num-clients is {num_nodes}, but {len(nodes)} nodes are connected after {timeout_seconds:g} s"
            if len(nodes) < math.ceil(quorum * num_nodes):
                raise TimeoutError(f"{told}: start more nodes, or simulate with a federation of that many")
            log.warning("%s: the run begins without the others, by its quorum", told)
            break
        time.sleep(POLL_SECONDS)
    return nodes


_LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}


def is_lost(error: Error) -> bool:
    """Tell whether a message failed because a node went away with it, or its host (client/host_socket.py)."""
    return error.code in _LOST or (error.reason or "").startswith(f"{ConnectionError}:")


# Flower's processes send an exception as its class around its text.
_EXCEPTION = re.compile(r"^<class '[^']*'>:<'(?P<text>.+)'>$")


def in_one_line(reason: str | None) -> str:
    """Return what a reply's error says, without the exception's class."""
    words = " ".join((reason or "").split())
    if raised := _EXCEPTION.match(words):
        words = raised["text"]
    return words[:MAX_REASON_CHARACTERS] or "an error without a reason"
