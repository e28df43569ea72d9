"""A SuperNode in the place of one that was killed, and how often it asks."""

import http.server
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, DeactivateNodeResponse
from flwr.supernode import start_client_internal

from client import supernode
from client.supernode import HOST, Pauses, leave_for, node_before, this_host


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
    assert {"time", "pull_objects"} <= vars(start_client_internal).keys()
    assert {"time", "sleep"} <= set(start_client_internal._push_messages.__code__.co_names)
    assert {"time", "sleep"} <= set(start_client_internal.start_client_internal.__code__.co_names)
    assert "pull_objects" in start_client_internal._pull_and_store_message.__code__.co_names


def test_the_node_before_is_the_last_that_a_log_tells_of_on_this_host(tmp_path: Path) -> None:
    log = tmp_path / "supernode.log"
    assert node_before(log, "here") is None
    log.write_bytes(f"{HOST} here\nINFO :      Starting Flower SuperNode\n".encode() + b"\xff\n")
    assert node_before(log, "here") is None
    with log.open("a") as said:
        said.write("INFO :      SuperNode ID: 12\nReceiving\nINFO :      SuperNode ID: 18446744073709551615\nSending\n")
    assert node_before(log, "here") == 18446744073709551615
    assert node_before(log, "there") is None  # the folder was copied: the other one may be alive
    with log.open("a") as said:
        said.write(f"{HOST} there\nINFO :      SuperNode ID: 5\n")
    assert (node_before(log, "here"), node_before(log, "there")) == (None, 5)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[Any]]:
    """Return a function that runs the SuperNode's start after a log that says so; it returns what is done, in order."""
    done: list[Any] = []
    config = SimpleNamespace(
        server_address="server:8000", insecure=False, root_certificates=b"ca", authentication_keys="k"
    )

    def flowers_own() -> None:
        done.append(("flower", *sys.argv))
        assert isinstance(start_client_internal.time, Pauses)  # type: ignore[attr-defined]
        assert start_client_internal.pull_objects.keywords["initial_backoff"] < 1  # type: ignore[attr-defined]

    def leave(*arguments: Any) -> bool:
        done.append(("leave", *arguments))
        return True

    monkeypatch.setattr(supernode, "flower_supernode", flowers_own)
    monkeypatch.setattr(supernode, "leave_for", leave)
    monkeypatch.setattr(supernode, "_parse_supernode_lifespan_config", lambda: config)
    for name in ("time", "pull_objects"):
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))  # put back at the end

    def start(said: str) -> list[Any]:
        (tmp_path / "log").write_text(said)
        monkeypatch.setattr(sys, "argv", ["client.supernode", str(tmp_path / "log"), "--superlink", "server:8000"])
        supernode.main()
        return done

    return start


FLOWER = ("flower", "flower-supernode", "--superlink", "server:8000")


def test_it_leaves_for_the_one_before_then_starts_with_short_pauses(
    started: Callable[[str], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    done = started(f"{HOST} {this_host()}\nSuperNode ID: 12\n")
    assert done == [("leave", 12, "server:8000", False, b"ca", "k"), FLOWER]
    assert capsys.readouterr().out == f"Node 12 was taken for alive, and has left\n{HOST} {this_host()}\n"


def test_where_there_was_none_before_on_this_host_it_only_starts(started: Callable[[str], list[Any]]) -> None:
    assert started(f"{HOST} elsewhere/1\nSuperNode ID: 12\n") == [FLOWER]


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
