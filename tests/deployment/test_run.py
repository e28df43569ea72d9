"""A run on a deployment is followed to its end, also where its log ends before."""

import subprocess
import sys

import pytest

from common.flower_processes import Processes
from deployment import run


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(run, "POLL_SECONDS", 0.0)


def answering(monkeypatch, *answers):
    """Let the SuperLink say these in turn, the last one from then on."""
    waiting = list(answers)

    def status_of(part, run_id):
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(run, "status_of", status_of)


def shown_until_the_end(monkeypatch, tmp_path, said, *streams, is_shown=True):
    """Follow a run to its end, whose log is streamed anew in these ways; return how it ended."""
    waiting = [*streams]

    class Streams(Processes):
        def start(self, program, arguments, log_path):
            assert (program, arguments) == ("flwr", ["log", "7", run.SUPERLINK, "--stream"])
            return printing(log_path, *waiting.pop(0))

    monkeypatch.setattr(run, "Processes", Streams)
    ended = run._end_of(tmp_path, "7", run._Shown(said.append), is_shown)
    assert not waiting
    return ended


def printing(log, *said):
    """Start a process that says these lines, one after the other."""
    code = f"import time\nfor line in {said!r}: print(line, flush=True); time.sleep(0.05)"
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-c", code], stdout=file)


def test_a_run_that_outlives_its_log_is_waited_for(monkeypatch, tmp_path):
    said = []
    answering(monkeypatch, RuntimeError("gone"), "running", "running", RuntimeError("gone"), "finished:completed")
    assert shown_until_the_end(monkeypatch, tmp_path, said, [], []) == run.COMPLETED
    gone, running = (f"its log has ended, but not the run: {status}" for status in ("out of sight (gone)", "running"))
    assert said == [gone, running, gone]  # each once


def test_the_end_of_a_log_that_broke_is_shown(monkeypatch, tmp_path):
    said = []
    answering(monkeypatch, run.COMPLETED)
    last = [run.STREAM_BEGINS, "results are in runs/x"]
    assert shown_until_the_end(monkeypatch, tmp_path, said, last, is_shown=False) == run.COMPLETED
    assert said == last


def test_a_line_is_shown_once_it_is_whole(tmp_path):
    log, said = tmp_path / "log", []
    code = (
        "import sys, time; w = sys.stdout.write; f = sys.stdout.flush; w('rou'); f(); time.sleep(1.2); w('nd 2\\nlast')"
    )
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file)
    run._Shown(said.append).follow(process, log)
    assert said == ["round 2", "last"]


def test_a_superlink_that_stays_away_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 0.01)
    answering(monkeypatch, RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        shown_until_the_end(monkeypatch, tmp_path, [])


def test_a_log_that_is_streamed_anew_goes_on_where_it_was(tmp_path):
    said = []
    shown = run._Shown(said.append)
    first = [
        "Successfully started run 123",
        run.STREAM_BEGINS,
        "round 1",
        "",
        "round 1",
        "round 2",
        "Error: no SuperLink",
    ]
    log = tmp_path / "first"
    shown.follow(printing(log, *first), log)
    assert shown.run_id == "123"
    assert said == [line for line in first if line]
    said.clear()
    again = tmp_path / "again"
    shown.follow(printing(again, run.STREAM_BEGINS, "round 1", "round 1", "round 2", "round 3", "round 4"), again)
    assert said == ["round 3", "round 4"]
    said.clear()
    unreachable = tmp_path / "unreachable"
    shown.follow(printing(unreachable, "Error: no SuperLink"), unreachable)
    assert said == []  # how the run is, is asked then
    third = tmp_path / "third"
    lines = ["round 1", "round 1", "round 2", "round 3", "round 4", "results are in runs/x"]
    shown.follow(printing(third, run.STREAM_BEGINS, *lines), third)
    assert said == ["results are in runs/x"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"run-id": "7", "status": "finished:completed", "status-details": "N/A"}, run.COMPLETED),
        ({"run-id": "7", "status": "finished:failed", "status-details": "no client"}, "finished:failed: no client"),
        ({"run-id": "8", "status": "running", "status-details": "N/A"}, "finished, unknown to the SuperLink"),
    ],
)
def test_the_status_is_flowers_with_its_reason(monkeypatch, tmp_path, row, expected):
    monkeypatch.setattr(run, "runs", lambda part: [row])
    assert run.status_of(tmp_path, "7") == expected


def test_a_log_is_shown_to_its_last_line_and_tells_the_runs_number(tmp_path):
    code = "import time; print('Successfully started run 123', flush=True); time.sleep(0.1); print('  the end')"
    log, said = tmp_path / "log", []
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=file)
    shown = run._Shown(said.append)
    shown.follow(process, log)
    assert shown.run_id == "123"
    assert said == ["Successfully started run 123", "the end"]


@pytest.mark.parametrize(
    ("ends", "num_resumes", "submitted"),
    [
        (["finished:failed: No heartbeat received from the task", run.COMPLETED], 3, [False, True]),
        (["finished:failed: No heartbeat received from the task"] * 3, 2, [False, True, True]),
        (["finished:failed: no client"], 3, [False]),
        ([run.COMPLETED], 3, [False]),
    ],
)
def test_a_run_whose_serverapp_was_lost_is_resumed(monkeypatch, tmp_path, ends, num_resumes, submitted):
    seen = []

    def submit(part, app_directory, run_config, tell):
        seen.append(run_config)
        return ends[len(seen) - 1]

    monkeypatch.setattr(run, "submit", submit)
    config = {"resume": False, "run-directory": "runs/a"}
    ended = run.submit_and_resume(tmp_path, tmp_path, config, num_resumes, lambda line: None)
    assert ended == ends[-1]
    assert seen == [{"resume": resume, "run-directory": "runs/a"} for resume in submitted]
