"""A SuperNode that waits for ever is named: a ClientApp was killed, at whatever moment, or its SuperExec."""

import subprocess
import sys
import time

import pytest

from deployment import deafness as module
from deployment.deafness import CLIENTAPP, SUPEREXEC, deafness
from deployment.supervision import Program

NAME = "SuperNode"
# Starts what it is told by lines: a SuperExec, which starts a ClientApp when it is told.
SLEEP = "import time; time.sleep(600)"
SUPEREXEC_CODE = f"""
import subprocess, sys
for line in sys.stdin:
    print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}, "{CLIENTAPP}"]).pid, flush=True)
"""
SUPERNODE_CODE = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SUPEREXEC_CODE!r}, "{SUPEREXEC}"])
print(child.pid, flush=True)
child.wait()
time.sleep(600)
"""


class Started:
    def __init__(self, log):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SUPERNODE_CODE], **pipes)
        self.superexec = self.process.stdout.readline().strip()
        self.program = Program(NAME, "", [], log, self.process)
        self.clientapps = []

    def start_clientapp(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.clientapps.append(self.process.stdout.readline().strip())


def kill(pid):
    subprocess.run(["kill", "-9", pid], check=True)


def within(seconds, look):
    """Tell what it names within so long; nothing, where it names nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if named := look():
            return named
    return ()


@pytest.fixture
def host(monkeypatch):
    health = {"pid": 7, "deserted": 0}
    monkeypatch.setattr(module, "ask_health", lambda _: health)
    monkeypatch.setattr(module, "SECONDS_WITHOUT_CLIENTAPP", 0.3)
    return health


@pytest.fixture
def started(tmp_path):
    (tmp_path / "log").write_text("an earlier one said\nReceiving: train message\n")
    started = Started(tmp_path / "log")
    yield started
    for pid in [started.superexec, *started.clientapps]:
        subprocess.run(["kill", "-9", pid], stderr=subprocess.DEVNULL)
    started.process.kill()
    started.process.communicate()


def said(started, line):
    with open(started.program.log, "a") as log:
        log.write(f"INFO: {line}\n")


def test_one_without_its_superexec_is_named(host, tmp_path, started):
    look = deafness(tmp_path, started.program)
    assert within(1, look) == ()
    kill(started.superexec)
    assert within(20, look) == (NAME,)


def test_one_whose_clientapp_was_killed_before_it_asked_is_named(host, tmp_path, started):
    look = deafness(tmp_path, started.program)
    assert look() == ()
    for _ in range(2):
        said(started, "Receiving: train message (ID: 1)")
        started.start_clientapp()
        assert within(1, look) == ()  # it works
        said(started, "Sending: train message (ID: 2)")
        kill(started.clientapps[-1])
        assert within(1, look) == ()  # it was through
    said(started, "Receiving: evaluate message (ID: 3)")
    started.start_clientapp()
    assert look() == ()
    kill(started.clientapps[-1])
    assert within(20, look) == (NAME,)


def test_each_clientapp_that_was_killed_after_it_asked_names_it_once(host, tmp_path):
    look = deafness(tmp_path, Program(NAME, "", [], tmp_path / "log"))
    assert look() == ()
    host["deserted"] = 1
    assert [look(), look()] == [(NAME,), ()]
    host["deserted"] = 2
    assert [look(), look()] == [(NAME,), ()]
    host.update(pid=8, deserted=0)  # another host
    assert look() == ()
    host["deserted"] = 1
    assert look() == (NAME,)


def test_where_nothing_runs_nothing_is_named(monkeypatch, tmp_path):
    def no_host(_):
        raise OSError

    monkeypatch.setattr(module, "ask_health", no_host)
    assert deafness(tmp_path, Program(NAME, "", [], tmp_path / "log"))() == ()
