"""A part is one process's alone, and what a killed one left running is ended."""

import subprocess
import sys

import pytest

from common.flower_processes import Processes, environment
from deployment.sole import LOCK, left_in, sole


def sleeper(home):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment(home))


def test_what_was_left_running_is_ended_and_nothing_else(tmp_path):
    mine, other = tmp_path / "node-1", tmp_path / "node-11"
    mine.mkdir()
    left, neighbour, said = sleeper(mine), sleeper(other), []
    try:
        assert left_in(mine) == [left.pid]
        with sole(mine, said.append):
            assert left.wait(20) < 0 and neighbour.poll() is None
            assert said == ["ending 1 processes that an earlier start left"]
            with Processes(mine) as processes:
                started = processes.start("python", ["-c", "import time; time.sleep(600)"], mine / "log")
                assert left_in(mine) == [started.pid]
        with sole(mine, said.append):
            assert len(said) == 1
    finally:
        for process in (left, neighbour):
            process.kill()
            process.wait()


def test_a_second_process_is_refused_by_name_and_a_killed_one_holds_nothing(tmp_path):
    code = f"import fcntl, time; f = open({str(tmp_path / LOCK)!r}, 'a'); fcntl.flock(f, 2); print('held', flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(600)"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        refused = pytest.raises(
            RuntimeError, match=r"another `fedmops deploy` runs from .*: one is enough, end it first"
        )
        with refused, sole(tmp_path, print):
            raise AssertionError
    finally:
        holder.kill()
        holder.communicate()
    with sole(tmp_path, print):
        pass
