"""A SuperNode that waits for ever is named: once for each ClientApp that was killed, and when its SuperExec is gone."""

import subprocess
import sys
import time

import pytest

from deployment import node
from deployment.supervision import Program

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "flower-superexec"])
print(child.pid, flush=True)
child.wait()
sys.stdin.read()
"""


@pytest.fixture
def supernode(tmp_path):
    """Run what has a child of that name, and goes on when it is gone."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    program = Program(node.SUPERNODE, "", [], tmp_path / "log", process)
    yield program
    process.kill()
    process.communicate()


def no_host(_):
    raise OSError


def test_one_without_its_superexec_is_named(monkeypatch, tmp_path, supernode):
    monkeypatch.setattr(node, "ask_health", no_host)
    look = node._deaf(tmp_path, supernode)
    child = supernode.process.stdout.readline().decode().strip()
    deadline = time.monotonic() + 20
    while not node.has_child(supernode.process.pid, node.SUPEREXEC):
        assert time.monotonic() < deadline
    assert look() == ()
    subprocess.run(["kill", "-9", child], check=True)
    while look() == ():
        assert time.monotonic() < deadline
    assert look() == (node.SUPERNODE,)


def test_one_that_has_no_superexec_yet_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(node, "ask_health", no_host)
    program = Program(node.SUPERNODE, "", [], tmp_path / "log")
    look = node._deaf(tmp_path, program)
    assert look() == ()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program.process:
        assert look() == look() == ()
        program.process.kill()


def test_each_clientapp_that_was_killed_names_it_once(monkeypatch, tmp_path):
    health = {"pid": 7, "deserted": 0}
    monkeypatch.setattr(node, "ask_health", lambda _: health)
    look = node._deaf(tmp_path, Program(node.SUPERNODE, "", [], tmp_path / "log"))
    assert look() == ()
    health["deserted"] = 1
    assert [look(), look()] == [(node.SUPERNODE,), ()]
    health["deserted"] = 2
    assert [look(), look()] == [(node.SUPERNODE,), ()]
    health.update(pid=8, deserted=0)  # another host
    assert look() == ()
    health["deserted"] = 1
    assert look() == (node.SUPERNODE,)
