"""The ClientApp: hands messages to the host of its node, or answers them in this process where there is none.

In a deployment Flower starts a process for each message, so nothing heavy is loaded here; in a simulation the process
stays, and keeps backbone and data itself.
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.host_socket import ask_host, take_leave_at_exit
from common.own_settings import HOST_KEY
from common.wire.preparation import QUERIES

app = ClientApp()


def on_message(message: Message, context: Context) -> Message:
    """Reply to a message of any kind."""
    host = context.node_config.get(HOST_KEY)
    if host is not None:
        return Message(ask_host(Path(str(host)), message, context, take_leave_at_exit), reply_to=message)
    from client.answers import answer  # loads torch

    return Message(answer(message.metadata.message_type, message.content, context), reply_to=message)


for query in QUERIES:
    app.query(query)(on_message)
app.train()(on_message)
app.evaluate()(on_message)
