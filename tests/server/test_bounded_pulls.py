"""A reply that was announced and never came is an error after the limit; Flower alone would wait for minutes."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.superlink.grid import http_grid
from flwr.superlink.grid.http_grid import HttpGrid

from server.bounded_pulls import GRID, bound_pulls
from simulations.inline import InlineGrid


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)  # put back at the end


def announced() -> Message:
    inline = InlineGrid(lambda message, context: None, {}, 1)  # type: ignore[arg-type]
    message = Message(RecordDict(), inline.get_node_ids()[0], "train")
    inline.push_messages([message])
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def test_a_reply_that_never_comes_is_an_error_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = announced()

    class Runtime:
        """A SuperLink that has a reply's announcement, and none of its objects."""

        def PullMessages(self, request: Any) -> Any:  # noqa: N802
            return SimpleNamespace(
                messages_list=[message_to_proto(reply)], message_object_trees=[get_object_tree(reply)]
            )

        def PullObject(self, request: Any) -> Any:  # noqa: N802
            return SimpleNamespace(object_found=True, object_available=False, object_content=b"")

    grid = HttpGrid.__new__(HttpGrid)
    monkeypatch.setattr(HttpGrid, "_runtime_client", Runtime(), raising=False)
    grid._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]
    grid.node = Node(node_id=1)
    bound_pulls(0.1)
    started = time.monotonic()
    (found,) = grid.pull_messages(["a message"])
    assert time.monotonic() - started < 10
    assert found.has_error() and "Reply message objects are unavailable" in found.error.reason
    assert found.metadata.reply_to_message_id == reply.metadata.reply_to_message_id


def test_where_another_grid_is_used_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, GRID)
    bound_pulls()
    assert GRID not in sys.modules
