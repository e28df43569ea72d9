"""What passes between a ClientApp's process and its node's host: frames over a UNIX socket that its owner alone opens.

A frame is a JSON object and some bytes, each behind its length. Records travel as Flower's protobuf. Who has the answer
takes leave when it is through; one that ends without, before or after the answer, was killed, and its SuperNode waits
for it for ever.
"""

import atexit
import contextlib
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

SOCKET = "host.sock"  # in the host's directory
HEALTH, LEAVE = "health", "leave"  # messages that are not Flower's
LENGTHS = struct.Struct(">IQ")
# A host opens its socket before it loads anything; one that died is started again within seconds.
CONNECT_SECONDS = 30.0
POLL_SECONDS = 0.2


def take_leave(connection: socket.socket) -> None:
    """Tell a host that its answer has arrived where it was to go."""
    with connection, contextlib.suppress(OSError):  # the host may have ended meanwhile
        send_frame(connection, {"message_type": LEAVE})


def take_leave_at_exit(connection: socket.socket) -> None:
    """Take leave when this process ends by itself: Flower sends the reply on, as its last work, when we are done.

    At a SIGTERM it ends, too, but in the midst of that.
    """
    terminated = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def on_signal(number: int, frame: FrameType | None) -> None:
        terminated.set()
        if callable(before):
            before(number, frame)

    def at_exit() -> None:
        if not terminated.is_set():
            take_leave(connection)

    signal.signal(signal.SIGTERM, on_signal)
    atexit.register(at_exit)


def ask_host(
    path: Path, message: Message, context: Context, leave: Callable[[socket.socket], None] = take_leave
) -> RecordDict:
    """Let a host answer a message; return the reply's content. `leave` takes leave of it, now or later.

    Raises RuntimeError with what the host says went wrong, and ConnectionError where no host answers, or it died.
    """
    about = {
        "message_type": message.metadata.message_type,
        "run_id": context.run_id,
        "run_config": context.run_config,
        "node_config": context.node_config,
    }
    connection = _connected(path)
    try:
        send_frame(connection, about, pack_records(message.content))
        said, body = receive_frame(connection)
    except ConnectionError:
        connection.close()
        raise ConnectionError(
            f"the node's host died while it answered {message.metadata.message_type}: see host.log beside {path}"
        ) from None
    except BaseException:
        connection.close()
        raise
    leave(connection)
    if "error" in said:
        raise RuntimeError(said["error"])
    return unpack_records(body)


def ask_health(path: Path) -> dict[str, Any]:
    """Ask a host how it is. Raises OSError where none answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(str(path))
        send_frame(connection, {"message_type": HEALTH})
        return receive_frame(connection)[0]


def _connected(path: Path) -> socket.socket:
    """Return a connection to a host; wait for one that is being started."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"no host answers at {path} ({error}): start one with `fedmops deploy node`"
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return connection


def send_frame(connection: socket.socket, about: dict[str, Any], body: bytes = b"") -> None:
    """Send an object and some bytes."""
    head = json.dumps(about).encode()
    connection.sendall(LENGTHS.pack(len(head), len(body)) + head + body)


def receive_frame(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Receive an object and its bytes. Raises ConnectionError where the other side ended before."""
    head_size, body_size = LENGTHS.unpack(_receive(connection, LENGTHS.size))
    about: dict[str, Any] = json.loads(_receive(connection, head_size))
    return about, _receive(connection, body_size)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = connection.recv(min(size - len(received), 1 << 20))
        if not part:
            raise ConnectionError("the other side has ended the connection")
        received += part
    return bytes(received)


def pack_records(records: RecordDict) -> bytes:
    """Turn records into bytes."""
    packed: bytes = recorddict_to_proto(records).SerializeToString()
    return packed


def unpack_records(body: bytes) -> RecordDict:
    """Turn bytes into records."""
    return recorddict_from_proto(RecordDictProto.FromString(body))
