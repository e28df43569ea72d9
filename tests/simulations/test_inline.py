"""The inline engine behaves towards both apps as Flower does."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from simulations.inline import InlineGrid, run_inline


def number(content: RecordDict, key: str) -> int:
    value = content.metric_records["it"][key]
    assert isinstance(value, int)
    return value


def counting_app() -> tuple[ClientApp, list[int]]:
    """Return an app that answers with its partition and how often it was called, and the log of partitions called."""
    app = ClientApp()
    called: list[int] = []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        called.append(partition)
        count = 1 + (number(context.state, "count") if "it" in context.state else 0)
        context.state["it"] = MetricRecord({"count": count})
        if (
            "fail" in message.content.config_records
            and message.content.config_records["fail"]["partition"] == partition
        ):
            raise ZeroDivisionError("no data")
        return Message(RecordDict({"it": MetricRecord({"partition": partition, "count": count})}), reply_to=message)

    return app, called


def to_all(grid: Grid, content: RecordDict | None = None) -> list[Message]:
    return [Message(content or RecordDict(), node_id, "train") for node_id in grid.get_node_ids()]


def failing(partition: int) -> RecordDict:
    return RecordDict({"fail": ConfigRecord({"partition": partition})})


def values(replies: list[Message], key: str) -> list[int]:
    return [number(reply.content, key) for reply in replies]


def test_each_pull_runs_the_oldest_waiting_client() -> None:
    app, called = counting_app()
    grid = InlineGrid(app, {}, 3)
    message_ids = grid.push_messages(to_all(grid))
    assert called == []
    for partition in range(3):
        assert values(grid.pull_messages(reversed(message_ids)), "partition") == [partition]
        assert called == list(range(partition + 1))
    assert grid.pull_messages(message_ids) == []


def test_pull_leaves_the_messages_alone_that_it_was_not_asked_for() -> None:
    app, called = counting_app()
    grid = InlineGrid(app, {}, 3)
    _, second, _ = grid.push_messages(to_all(grid))
    assert values(grid.pull_messages([second]), "partition") == [1]
    assert grid.pull_messages([second, "unknown"]) == []
    assert called == [1]


def test_pushed_messages_and_replies_carry_ids_that_map_onto_each_other() -> None:
    grid = InlineGrid(counting_app()[0], {}, 2)
    messages = to_all(grid, failing(1))
    replies = grid.send_and_receive(messages)
    assert [m.metadata.message_id for m in messages] == [r.metadata.reply_to_message_id for r in replies]
    assert len({m.metadata.message_id for m in [*messages, *replies]}) == 4


def test_a_raising_client_gives_an_error_reply_and_the_others_answer() -> None:
    grid = InlineGrid(counting_app()[0], {}, 3)
    messages = to_all(grid, failing(1))
    first, error, last = grid.send_and_receive(messages)
    assert values([first, last], "partition") == [0, 2]
    assert not error.has_content()
    assert error.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert error.error.reason == "<class 'ZeroDivisionError'>:<'no data'>"
    assert error.metadata.src_node_id == messages[1].metadata.dst_node_id
    assert error.metadata.dst_node_id == messages[1].metadata.src_node_id
    assert error.metadata.reply_to_message_id == messages[1].metadata.message_id


@pytest.mark.parametrize("answer", ["nothing", "the message itself", "a number too large for the wire"])
def test_an_answer_that_flower_could_not_ship_gives_an_error_reply(answer: str) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Any:
        too_large = RecordDict({"it": MetricRecord({"count": 2**64})})
        answers = {"nothing": None, "the message itself": message}
        return answers.get(answer, Message(too_large, reply_to=message))

    grid = InlineGrid(app, {}, 1)
    assert [reply.has_error() for reply in grid.send_and_receive(to_all(grid))] == [True]


def test_a_message_that_flower_could_not_ship_is_refused() -> None:
    grid = InlineGrid(counting_app()[0], {}, 1)
    with pytest.raises(ValueError, match="out of range"):
        grid.push_messages(to_all(grid, RecordDict({"it": MetricRecord({"count": 2**64})})))


def test_a_message_to_an_unknown_node_is_refused() -> None:
    grid = InlineGrid(counting_app()[0], {}, 1)
    with pytest.raises(ValueError, match="no node has the id 7"):
        grid.push_messages([Message(RecordDict(), 7, "train")])


def test_state_persists_per_node() -> None:
    grid = InlineGrid(counting_app()[0], {}, 2)
    first_only = to_all(grid)[:1]
    assert values(grid.send_and_receive(first_only), "count") == [1]
    assert values(grid.send_and_receive(to_all(grid)), "count") == [2, 1]


def test_a_raising_client_leaves_its_state_as_it_was() -> None:
    grid = InlineGrid(counting_app()[0], {}, 1)
    grid.send_and_receive(to_all(grid, failing(0)))
    assert values(grid.send_and_receive(to_all(grid)), "count") == [1]


def test_what_a_client_does_to_its_message_does_not_reach_the_server_or_the_next_client() -> None:
    app, received = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["pool"]
        values = arrays["w"].numpy()
        received.append((values.tolist(), list(arrays), list(message.content.config_records["settings"])))
        values += 1.0
        arrays["w"].data = Array(values).data
        arrays["mine"] = Array(values)
        message.content.config_records["settings"]["mine"] = 1
        message.metadata.group_id = "mine"
        return Message(message.content, reply_to=message)

    grid = InlineGrid(app, {}, 2)
    content = RecordDict({"pool": ArrayRecord({"w": Array(np.zeros(2))}), "settings": ConfigRecord({"rate": 0.1})})
    messages = to_all(grid, content)
    replies = grid.send_and_receive(messages)

    assert received == [([0.0, 0.0], ["w"], ["rate"])] * 2
    assert content.array_records["pool"]["w"].numpy().tolist() == [0.0, 0.0]
    assert list(content.array_records["pool"]) == ["w"]
    assert list(content.config_records["settings"]) == ["rate"]
    assert messages[0].metadata.group_id == ""
    assert [reply.content.array_records["pool"]["w"].numpy().tolist() for reply in replies] == [[1.0, 1.0]] * 2


def test_a_message_is_what_it_was_when_it_was_pushed() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    grid = InlineGrid(app, {}, 1)
    content = RecordDict({"it": MetricRecord({"value": 1})})
    message_ids = grid.push_messages(to_all(grid, content))
    content.metric_records["it"]["value"] = 2
    assert values(grid.pull_messages(message_ids), "value") == [1]


def test_a_timeout_of_zero_runs_no_client() -> None:
    app, called = counting_app()
    grid = InlineGrid(app, {}, 2)
    assert grid.send_and_receive(to_all(grid), timeout=0.0) == []
    assert called == []


def test_both_apps_get_the_run_config_and_clients_their_node_config() -> None:
    client_app, server_app = ClientApp(), ServerApp()
    seen: list[tuple[int, dict[str, Any], dict[str, Any]]] = []

    @client_app.query()
    def query(message: Message, context: Context) -> Message:
        seen.append((context.node_id, context.node_config, dict(context.run_config)))
        context.run_config["rate"] = 1.0
        return Message(RecordDict(), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        node_ids = list(grid.get_node_ids())
        assert dict(context.run_config) == config
        grid.send_and_receive([Message(RecordDict(), node_id, "query") for node_id in node_ids])
        assert [node_id for node_id, _, _ in seen] == node_ids

    config: dict[str, str | int | float | bool] = {"name": "a run", "rate": 0.1, "steps": 3, "on": True}
    run_inline(server_app, client_app, config, 2)

    assert [node_config for _, node_config, _ in seen] == [{"partition-id": i, "num-partitions": 2} for i in range(2)]
    assert [run_config for _, _, run_config in seen] == [config, config]  # though the first client changed its own


def test_what_a_node_has_not_begun_when_its_next_message_comes_is_dropped() -> None:
    app, seen = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append((context.node_config["partition-id"], message.metadata.message_id))
        return Message(RecordDict(), reply_to=message)

    grid = InlineGrid(app, {}, 2)
    first, second = grid.get_node_ids()
    stale, kept = grid.push_messages([Message(RecordDict(), node, "train") for node in (first, second)])
    (fresh,) = grid.push_messages([Message(RecordDict(), first, "train")])
    while grid.pull_messages([stale, kept, fresh]):
        pass
    assert seen == [(1, kept), (0, fresh)]


def test_what_the_server_app_raises_propagates() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        raise LookupError("the server's own")

    with pytest.raises(LookupError, match="the server's own"):
        run_inline(server_app, ClientApp(), {}, 1)


def test_an_interrupt_in_a_client_stops_the_run() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    grid = InlineGrid(app, {}, 1)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(to_all(grid))
