"""The ClientApp: hands messages to the host of its node, or answers them in this process where there is none.

In a deployment Flower starts a process for each message, so nothing heavy is loaded here; in a simulation the process
stays, and keeps backbone and data itself.
"""

from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.host_socket import ask_host, take_leave_at_exit
from client.kept_state import SUFFIX, read_state, write_state
from common.own_settings import HOST_KEY
from common.wire.preparation import QUERIES

app = ClientApp()


def on_message(message: Message, context: Context) -> Message:
    """Reply to a message of any kind."""
    host = context.node_config.get(HOST_KEY)
    if host is not None:
        return Message(ask_host(Path(str(host)), message, context, take_leave_at_exit), reply_to=message)
    return Message(_answer_here(message, context), reply_to=message)


def _answer_here(message: Message, context: Context) -> RecordDict:
    """Answer in this process; what the client keeps lies in the run's directory, so that it can be resumed."""
    from client.answers import answer  # loads torch
    from common.saved_run import CLIENT_STATES

    run_directory, client = context.run_config.get("run-directory"), context.node_config.get("partition-id")
    path = Path(str(run_directory)) / CLIENT_STATES / f"client-{client}{SUFFIX}" if run_directory else None
    if path and not context.state and context.run_config.get("resume"):
        context.state.update(read_state(path))
    content = answer(message.metadata.message_type, message.content, context)
    if path and context.state and message.metadata.message_type == MessageType.TRAIN:
        write_state(path, context.state)
    return content


for query in QUERIES:
    app.query(query)(on_message)
app.train()(on_message)
app.evaluate()(on_message)
