"""The inline engine: run the unmodified ServerApp and ClientApp in this process, one client after the other.

No Ray and no SuperLink, so a run starts at once and holds one copy of the backbone. What the apps see is what Flower
would show them: messages cross as they cross the wire, each partition has its Context, a client that raises gives an
error reply. Written against Flower 1.41; what it takes from Flower's private modules is marked, and tested.
"""

import copy
import itertools
import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import (
    config_record_from_proto,
    config_record_to_proto,
    metric_record_from_proto,
    metric_record_to_proto,
)
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.config import Value

logger = logging.getLogger(__name__)

_RUN_ID = 1
_FIRST_NODE_ID = 1000  # far from the partition ids, so that taking one for the other shows


class InlineGrid(Grid):
    """A Grid whose nodes are one ClientApp, called in this process.

    A pushed message waits until it is pulled; each call of `pull_messages` runs one client, so a caller that polls
    sees the replies one after the other and can show progress or stop at its deadline.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, Value],
        num_clients: int,
        node_config: Mapping[str, Value] | None = None,
    ) -> None:
        """Make the nodes; `node_config` is what all have of their own beside their number."""
        self._node_config = dict(node_config or {})
        # Private and process-wide: Message() reads here who sends it. Flower's processes set it when they start.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = _RUN_ID, 1, SUPERLINK_NODE_ID
        self._run = Run.create_empty(_RUN_ID)
        self._client_app = client_app
        self._run_config = dict(run_config)
        self._states = {_FIRST_NODE_ID + partition: RecordDict() for partition in range(num_clients)}
        self._queue: dict[str, Message] = {}  # by message id, oldest first
        self._message_ids = map(str, itertools.count(1))

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message. Flower has deprecated this in favour of Message(...), but Grid demands it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids, in the order of their partitions."""
        return list(self._states)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue a snapshot of each message and return their ids, which the messages passed in carry as well.

        What a node has not begun when its next message comes is dropped: nobody waits for it any more.
        """
        message_ids = []
        messages = list(messages)
        addressed = {message.metadata.dst_node_id for message in messages}
        for message_id in [key for key, queued in self._queue.items() if queued.metadata.dst_node_id in addressed]:
            del self._queue[message_id]
        for message in messages:
            if message.metadata.dst_node_id not in self._states:
                raise ValueError(
                    f"no node has the id {message.metadata.dst_node_id}; "
                    f"expected one of get_node_ids(): {_FIRST_NODE_ID} to {_FIRST_NODE_ID + len(self._states) - 1}"
                )
            _set_message_id(message, next(self._message_ids))
            self._queue[message.metadata.message_id] = _cross_the_wire(message)
            message_ids.append(message.metadata.message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the client of the oldest waiting message among these and return its reply; nothing if none waits."""
        wanted = set(message_ids)
        oldest = next((message_id for message_id in self._queue if message_id in wanted), None)
        return [] if oldest is None else [self._reply(self._queue.pop(oldest))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push the messages and pull until all are answered or `timeout` seconds are over; later replies are lost."""
        message_ids = self.push_messages(messages)
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while len(replies) < len(message_ids) and (deadline is None or time.monotonic() < deadline):
            replies += self.pull_messages(message_ids)
        for message_id in message_ids:
            self._queue.pop(message_id, None)
        return replies

    def _reply(self, message: Message) -> Message:
        """Return what the ClientApp answers, or the error reply Flower would make of its exception."""
        node_id = message.metadata.dst_node_id
        context = Context(
            run_id=_RUN_ID,
            node_id=node_id,
            node_config=self._node_config
            | {"partition-id": node_id - _FIRST_NODE_ID, "num-partitions": len(self._states)},
            state=_records_over_the_wire(self._states[node_id]),
            run_config=dict(self._run_config),
        )
        try:
            answer = self._client_app(message, context)
            if not isinstance(answer, Message) or answer.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError(f"a ClientApp must return Message(..., reply_to=message), got {answer!r:.200}")
            reply = _cross_the_wire(answer)
            self._states[node_id] = _records_over_the_wire(context.state)
        except Exception as error:
            logger.debug("the ClientApp of node %d raised", node_id, exc_info=True)
            reason = f"{type(error)}:<'{error}'>"  # the format of Flower's ClientApp process
            reply = Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)
        _set_message_id(reply, next(self._message_ids))
        return reply


def run_inline(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, str | int | float | bool],
    num_clients: int,
) -> None:
    """Run `server_app` against `num_clients` partitions of `client_app`; what the ServerApp raises propagates.

    `run_config` is passed on as it is: the defaults of [tool.flwr.app.config] are the caller's to merge.
    """
    grid = InlineGrid(client_app, run_config, num_clients)
    context = Context(
        run_id=_RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid, context)


def _set_message_id(message: Message, message_id: str) -> None:
    message.metadata.__dict__["_message_id"] = message_id  # read-only by its property; Flower's own grids do this too


def _cross_the_wire(message: Message) -> Message:
    """Return the message as the other side would receive it."""
    metadata = copy.copy(message.metadata)
    if message.has_error():
        return make_message(metadata, error=message.error)
    return make_message(metadata, content=_records_over_the_wire(message.content))


def _records_over_the_wire(records: RecordDict) -> RecordDict:
    """Return the records as they would arrive: nothing mutable is shared with the sender.

    Metrics and configs make the round trip through protobuf, which refuses what Flower could not ship. An Array holds
    its data as immutable bytes, packed when it was made, so these are shared: queueing a message for a thousand
    clients costs one copy of the arrays, not a thousand.
    """
    received = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            received[name] = arrays = ArrayRecord()
            for key, array in record.items():
                arrays[key] = copy.copy(array)  # a new Array around the same bytes
        elif isinstance(record, ConfigRecord):
            received[name] = config_record_from_proto(config_record_to_proto(record))
        else:
            received[name] = metric_record_from_proto(metric_record_to_proto(record))
    return received
