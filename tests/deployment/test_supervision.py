"""Programs that end, or hear nothing, are started again; an interruption ends them all."""

import os
import signal
from pathlib import Path

import pytest

from common.flower_processes import Processes
from deployment import supervision
from deployment.supervision import Program, look_after


class EnoughError(Exception):
    """Stands for Ctrl-C."""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(supervision, "POLL_SECONDS", 0.01)
    code = "import time, sys; print('it went wrong', flush=True); time.sleep(float(sys.argv[1]))"
    return [
        Program("short", "python", ["-c", code, "0"], tmp_path / "short.log"),
        Program("long", "python", ["-c", code, "600"], tmp_path / "long.log"),
    ]


def is_alive(pid):
    return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_what_ends_and_what_is_deaf_starts_again_and_nothing_survives(tmp_path, programs):
    said, pids = [], []

    def tell(line):
        said.append(line)
        if sum(line.startswith("short starts again") for line in said) >= 2 and len(pids) >= 2:
            raise EnoughError

    def deaf():
        long = programs[1].process
        if long is not None and long.pid not in pids:
            pids.append(long.pid)
            return ["long"] if len(pids) == 1 else []
        return []

    with pytest.raises(EnoughError), Processes(tmp_path) as processes:
        look_after(processes, programs, tell, deaf)
    assert "short ended with exit code 0: it went wrong" in said
    assert said.count("long hears nothing any more") == 1
    assert len(set(pids)) == 2 and not any(map(is_alive, pids))


def test_a_program_that_is_killed_starts_again(tmp_path, programs):
    pids = []

    def deaf():
        long = programs[1].process
        if long is not None and long.pid not in pids:
            pids.append(long.pid)
            if len(pids) == 3:
                raise EnoughError
            os.kill(long.pid, signal.SIGKILL)
        return []

    with pytest.raises(EnoughError), Processes(tmp_path) as processes:
        look_after(processes, programs[1:], lambda line: None, deaf)
