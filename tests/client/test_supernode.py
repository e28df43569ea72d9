"""A SuperNode in the place of one that was killed, and how often it asks."""

import http.server
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, DeactivateNodeResponse
from flwr.supernode import start_client_internal

from client import supernode
from client.supernode import Pauses, leave_for, node_before


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(supernode.time, "sleep", pauses.append)
    return pauses


def test_pauses_begin_short_after_each_message_and_end_at_flowers_own(slept: list[float]) -> None:
    clock = Pauses()
    for _ in range(6):
        clock.sleep(3)
    assert slept == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.0, 3.0])
    slept.clear()
    for _ in range(3):
        clock.sleep(0.5)  # a message is being answered
    for _ in range(3):
        clock.sleep(3)
    assert slept == pytest.approx([0.5, 0.2, 0.2, 0.2, 0.4, 0.8])


def test_flowers_loop_takes_its_pauses_where_they_are_replaced() -> None:
    assert {"time", "_push_messages"} <= vars(start_client_internal).keys()
    assert "sleep" in start_client_internal._push_messages.__code__.co_names


def test_the_node_before_is_the_last_that_a_log_tells_of(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    assert node_before(log) is None
    log.write_bytes(b"INFO :      Starting Flower SuperNode\n\xff\n")
    assert node_before(log) is None
    log.write_bytes(
        b"INFO :      SuperNode ID: 12\nReceiving\nINFO :      SuperNode ID: 18446744073709551615\nSending\n"
    )
    assert node_before(log) == 18446744073709551615


Asked = list[tuple[str, int, bool]]


class SuperLink(http.server.BaseHTTPRequestHandler):
    """Knows one node; keeps what it is asked."""

    def __init__(self, asked: Asked, *arguments: Any) -> None:
        self.asked = asked
        super().__init__(*arguments)

    def do_POST(self) -> None:
        request = DeactivateNodeRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        is_signed = any("signature" in name.lower() for name in self.headers)
        self.asked.append((self.path, request.node_id, is_signed))
        answer = DeactivateNodeResponse().SerializeToString()
        self.send_response(200 if request.node_id == 7 else 409)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_it_leaves_in_the_name_of_the_one_before() -> None:
    asked: Asked = []
    key = ec.generate_private_key(ec.SECP384R1())
    with http.server.HTTPServer(("127.0.0.1", 0), partial(SuperLink, asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert leave_for(7, address, True, None, (key, key.public_key()))
        assert not leave_for(8, address, True, None, None)
        server.shutdown()
    assert asked == [("/v1/fleet/deactivate-node", 7, True), ("/v1/fleet/deactivate-node", 8, False)]
    assert not leave_for(7, address, True, None, None)  # nobody answers
