"""A node's host: one message at a time, one run at a time; what goes wrong is told to who asked."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client import host_socket
from client.host import Host, _Handler, _Server
from client.host_socket import SOCKET, ask_health, ask_host, receive_frame, send_frame
from simulations.inline import InlineGrid

CONTENT = RecordDict({"arrays": ArrayRecord({"a": Array(np.arange(5.0))}), "about": ConfigRecord({"text": "hello"})})


class Answers:
    """Stand in for client.answers: wait when told to, count what is kept for the run."""

    def __init__(self):
        self.may_go, self.begun, self.order = threading.Event(), threading.Event(), []
        self.may_go.set()
        self.load_backbone = SimpleNamespace(cache_info=lambda: SimpleNamespace(misses=1))
        self.forgotten = []

    def forget(self, with_backbone):
        self.forgotten.append(with_backbone)

    def answer(self, message_type, content, context):
        self.begun.set()
        assert self.may_go.wait(20)
        self.order.append(context.node_config["partition-id"])
        if message_type == "evaluate":
            raise ValueError("the file is gone")
        kept = int(context.state["kept"]["count"]) if "kept" in context.state else 0
        context.state["kept"] = ConfigRecord({"count": kept + 1})
        return RecordDict({**content, "kept": ConfigRecord({"count": kept, "key": context.run_config["key"]})})


@pytest.fixture
def answers(monkeypatch):
    answers = Answers()
    monkeypatch.setattr("client.host.import_module", lambda name: answers)
    monkeypatch.setattr("client.host.LOOK_SECONDS", 0.02)
    return answers


@pytest.fixture
def serving(tmp_path, answers):
    """Serve from a directory; a host that died may be followed by another."""
    running = []

    def start():
        path = tmp_path / SOCKET
        path.unlink(missing_ok=True)
        server = _Server(str(path), _Handler)
        server.host = Host(tmp_path)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        running.append(server)
        return path, server

    yield start
    answers.may_go.set()
    for server in running:
        server.shutdown()
        server.server_close()
        server.host.stop()


def message_of(kind):
    grid = InlineGrid(None, {}, 1)
    message = Message(CONTENT, grid.get_node_ids()[0], kind)
    grid.push_messages([message])
    return message


def context_of(run_id, number=0, **settings):
    return Context(run_id, 7, {"partition-id": number}, RecordDict(), {"key": "value", "backbone": "one", **settings})


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_message_is_answered_and_what_is_kept_outlives_the_host(serving, answers):
    path, server = serving()
    for expected in (0, 1):
        reply = ask_host(path, message_of("train"), context_of(2**63 + 5))
        assert dict(reply["kept"]) == {"count": expected, "key": "value"}
        np.testing.assert_array_equal(reply["arrays"]["a"].numpy(), np.arange(5.0))
    server.shutdown()
    server.host.stop()
    path, _ = serving()
    assert ask_host(path, message_of("train"), context_of(2**63 + 5))["kept"]["count"] == 2
    assert ask_host(path, message_of("train"), context_of(9))["kept"]["count"] == 0
    assert answers.forgotten == [True, True, False]
    assert oct(path.parent.joinpath("state").stat().st_mode)[-3:] == "700"


def test_a_run_with_the_same_backbone_finds_it_loaded(serving, answers):
    path, _ = serving()
    for run_id, backbone in enumerate(("one", "one", "another")):
        ask_host(path, message_of("train"), context_of(run_id, backbone=backbone))
    assert answers.forgotten == [True, False, True]


def test_a_damaged_state_is_told_and_left_out(serving, tmp_path, caplog):
    path, server = serving()
    ask_host(path, message_of("train"), context_of(5))
    server.shutdown()
    server.host.stop()
    (state,) = (tmp_path / "state").iterdir()
    state.write_bytes(b"damaged")
    path, _ = serving()
    assert ask_host(path, message_of("train"), context_of(5))["kept"]["count"] == 0
    assert "what this client kept for the run is damaged and left out" in caplog.text


def test_a_resumed_run_finds_its_state_by_its_directory_and_a_new_one_there_does_not(serving):
    def count(run_id, **settings):
        return ask_host(path, message_of("train"), context_of(run_id, **settings))["kept"]["count"]

    path, _ = serving()
    assert [count(1, **{"run-directory": "runs/a"}) for _ in range(2)] == [0, 1]
    assert count(2, **{"run-directory": "runs/b"}) == 0
    assert [count(3, **{"run-directory": "runs/a", "resume": True}) for _ in range(2)] == [2, 3]
    assert count(4, **{"run-directory": "runs/c", "resume": True}) == 0
    assert count(5, **{"run-directory": "runs/a"}) == 0


def test_messages_wait_their_turn_and_health_is_told_meanwhile(serving, answers):
    path, _ = serving()
    answers.may_go.clear()
    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=ask_host, args=(path, message_of("train"), context_of(1, number))))
        threads[-1].start()
        wait_until(lambda number=number: ask_health(path)["waiting"] == number + 1)
    assert ask_health(path)["working_on"] == "train"
    answers.may_go.set()
    for thread in threads:
        thread.join()
    assert answers.order == [0, 1, 2]
    assert ask_health(path) | {"pid": 0} == {
        "pid": 0, "run_id": 1, "working_on": None, "waiting": 0, "answered": 3, "failed": 0, "deserted": 0,
        "backbone_loads": 1, "unsaved": 0,
    }  # fmt: skip


def test_another_run_is_refused_by_name_while_one_is_served(serving, answers):
    path, _ = serving()
    answers.may_go.clear()
    first = threading.Thread(target=ask_host, args=(path, message_of("train"), context_of(1)))
    first.start()
    assert answers.begun.wait(20)
    with pytest.raises(RuntimeError, match="this node works for run 1: wait for its end, or stop it, and start again"):
        ask_host(path, message_of("train"), context_of(2))
    answers.may_go.set()
    first.join()
    assert ask_host(path, message_of("train"), context_of(2))["kept"]["count"] == 0


def test_what_a_client_fails_with_is_told_in_its_words(serving):
    path, _ = serving()
    with pytest.raises(RuntimeError, match=r"^the file is gone$"):
        ask_host(path, message_of("evaluate"), context_of(1))
    assert ask_health(path)["failed"] == 1


def test_a_clientapp_that_ends_before_its_answer_is_noticed(serving, answers):
    path, _ = serving()
    answers.may_go.clear()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        about = {"message_type": "train", "run_id": 1, "run_config": {"key": ""}, "node_config": {"partition-id": 0}}
        send_frame(connection, about)
        assert answers.begun.wait(20)
    wait_until(lambda: ask_health(path)["deserted"] == 1)


def test_a_message_whose_clientapp_ended_before_it_was_begun_no_longer_waits(serving, answers):
    path, _ = serving()
    answers.may_go.clear()
    first = threading.Thread(target=ask_host, args=(path, message_of("train"), context_of(1)))
    first.start()
    assert answers.begun.wait(20)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        about = {"message_type": "train", "run_id": 1, "run_config": {"key": ""}, "node_config": {"partition-id": 1}}
        send_frame(connection, about)
        wait_until(lambda: ask_health(path)["waiting"] == 2)
    wait_until(lambda: ask_health(path)["deserted"] == 1)
    answers.may_go.set()
    first.join()
    assert ask_health(path)["waiting"] == 0 and answers.order == [0]
    ask_host(path, message_of("train"), context_of(2))  # another run is not refused


LEAVING = """
import os, signal, socket, sys
from client.host_socket import LEAVE, receive_frame, send_frame, take_leave_at_exit
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Flower does
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
about = {"run_id": 1, "run_config": {"key": ""}, "node_config": {"partition-id": 0}}
send_frame(connection, {"message_type": "train", **about})
receive_frame(connection)
take_leave_at_exit(connection)
if sys.argv[2]:
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize(("number", "deserted"), [("", 0), (signal.SIGTERM, 1), (signal.SIGKILL, 1)])
def test_a_clientapp_that_ends_after_its_answer_takes_leave_unless_it_is_killed(serving, number, deserted):
    path, server = serving()
    words = [sys.executable, "-c", LEAVING, str(path), str(number and int(number))]
    subprocess.run(words, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    if deserted:
        wait_until(lambda: ask_health(path)["deserted"] == 1)
    server.shutdown()
    server.server_close()
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(20)
    assert server.host.health["deserted"] == deserted and server.host.health["answered"] == 1


def test_a_host_that_dies_is_named(tmp_path):
    path = tmp_path / SOCKET
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def die():
            connection, _ = listening.accept()
            receive_frame(connection)
            connection.close()

        threading.Thread(target=die).start()
        with pytest.raises(ConnectionError, match=r"the node's host died while it answered train: see host\.log"):
            ask_host(path, message_of("train"), context_of(1))


def test_where_no_host_is_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(host_socket, "CONNECT_SECONDS", 0.0)
    with pytest.raises(ConnectionError, match=r"no host answers at .*start one with `fedmops deploy node`"):
        ask_host(tmp_path / SOCKET, message_of("train"), context_of(1))


def test_a_full_disk_is_told_and_the_answer_comes_nevertheless(serving, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.kept_state.replace_file", full)
    path, _ = serving()
    for expected in (0, 1):
        assert ask_host(path, message_of("train"), context_of(1))["kept"]["count"] == expected
    assert "No space left on device" in caplog.text and ask_health(path)["unsaved"] == 2


def test_a_real_host_listens_to_its_owner_alone_and_ends_when_asked(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "client.host", str(tmp_path / "host")], cwd=Path(__file__).parents[2]
    )
    try:
        path = tmp_path / "host" / SOCKET
        wait_until(path.exists)
        wait_until(lambda: path.stat().st_mode & 0o077 == 0)
        assert ask_health(path)["pid"] == process.pid
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_beyond_its_memory_an_allocation_fails_and_the_process_lives():
    code = """
import numpy as np
from client.host import limit_memory
limit_memory(0.5)
try:
    np.ones(2**27)
except MemoryError as error:
    print(error)
print(np.ones(2**20).sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[1:] == ["1048576.0"] and "1.00 GiB" in done.stdout
