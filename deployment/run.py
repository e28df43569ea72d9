"""A run on a deployment: submit it, show its log as it goes, and say truly how it ended."""

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from common.config import Value
from common.flower_processes import Processes, plain, run_flwr, to_toml
from deployment.folder import SUPERLINK, read_control, write_connection
from deployment.supervision import Tell

COMPLETED, NO_DETAILS = "finished:completed", "N/A"
LOST = "No heartbeat received"  # of the ServerApp: it was killed, or could not reach the SuperLink for a minute
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 180.0  # with a SuperLink that is started again
STREAM_BEGINS = "Starting logstream"
_RUN_ID = re.compile(r"run (\d+)")


def submit_and_resume(
    part: Path, app_directory: Path, run_config: Mapping[str, Value], num_resumes: int, tell: Tell
) -> str:
    """Submit a run, and again, to go on after its last whole round, where its ServerApp was lost; return how it ended.

    Its run-directory must be given.
    """
    ended = submit(part, app_directory, run_config, tell)
    for number in range(1, num_resumes + 1):
        if LOST not in ended:
            break
        tell(f"the ServerApp was lost; the run is resumed, {number} of at most {num_resumes} times")
        ended = submit(part, app_directory, {**run_config, "resume": True}, tell)
    return ended


def submit(part: Path, app_directory: Path, run_config: Mapping[str, Value], tell: Tell) -> str:
    """Submit a run of the app and follow it to its end; return how Flower says that it ended.

    Raises RuntimeError where it could not be submitted. An interruption ends the following alone, not the run.
    """
    part = _connected(part)
    shown = _Shown(tell)
    with tempfile.TemporaryDirectory(dir=part) as directory:
        overrides = Path(directory) / "overrides.toml"
        overrides.write_text(to_toml(run_config), encoding="utf-8")
        is_shown = _stream(part, ["run", str(app_directory), SUPERLINK, "--stream", "-c", str(overrides)], shown)
    if shown.run_id is None:
        raise RuntimeError(f"the run was not submitted to {read_control(part).superlink}: see above")
    return _end_of(part, shown.run_id, shown, is_shown)


def _end_of(part: Path, run_id: str, shown: "_Shown", is_shown: bool) -> str:
    """Wait until a run has ended and its log `is_shown`, whatever becomes of the SuperLink; return how it ended."""
    missed_since, told = None, ""
    while True:
        try:
            status = status_of(part, run_id)
            missed_since = None
        except RuntimeError as error:
            missed_since = missed_since or time.monotonic()
            if time.monotonic() - missed_since > PATIENCE_SECONDS:
                raise
            status = f"out of sight ({error})"
        if status.startswith("finished"):
            if not is_shown:
                _stream(part, ["log", run_id, SUPERLINK, "--stream"], shown)
            return status
        if status != told:
            shown.tell(f"its log has ended, but not the run: {status}")
        told = status
        time.sleep(POLL_SECONDS)
        if missed_since is None:
            is_shown = _stream(part, ["log", run_id, SUPERLINK, "--stream"], shown)


def _stream(part: Path, arguments: list[str], shown: "_Shown") -> bool:
    """Show a log until it ends; return whether it ended well."""
    with tempfile.TemporaryDirectory(dir=part) as directory, Processes(part) as processes:
        log = Path(directory) / "stream.log"
        log.touch()
        stream = processes.start("flwr", arguments, log)
        shown.follow(stream, log)
        return stream.returncode == 0


class _Shown:
    """A run's log, shown as it comes. Flower streams one anew from its beginning: what was shown is not shown again."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.run_id: str | None = None
        self._lines: list[str] = []  # of the run

    def follow(self, stream: "subprocess.Popen[bytes]", log: Path) -> None:
        """Show lines as they come until the stream ends."""
        position: int | None = None  # within the run's lines
        with open(log, encoding="utf-8", errors="replace") as file:
            while True:
                ended = stream.poll() is not None  # before reading, so that nothing is missed
                while line := self._whole_line(file, ended):
                    if not (said := plain(line)):
                        continue
                    if position is None:
                        position = 0 if STREAM_BEGINS in said else None
                        self._show_what_flwr_says(said)
                    else:
                        self._show_what_the_run_says(said, position)
                        position += 1
                if ended:
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    stream.wait(timeout=0.5)

    @staticmethod
    def _whole_line(file: TextIO, ended: bool) -> str:
        """Read a line once all of it is there; nothing until then."""
        begin = file.tell()
        line = file.readline()
        if line.endswith("\n") or ended:
            return line
        file.seek(begin)
        return ""

    def _show_what_flwr_says(self, said: str) -> None:
        if self.run_id is None and (found := _RUN_ID.search(said)):
            self.run_id = found[1]
        if not self._lines:
            self.tell(said)

    def _show_what_the_run_says(self, said: str, position: int) -> None:
        if self._lines[position : position + 1] != [said]:
            del self._lines[position:]  # what flwr said when the stream broke
            self._lines.append(said)
            self.tell(said)


def status_of(part: Path, run_id: str) -> str:
    """Return how Flower says that a run is, with its reason."""
    for run in runs(part):
        if str(run["run-id"]) == run_id:
            details = run.get("status-details", NO_DETAILS)
            return str(run["status"]) if details in ("", NO_DETAILS) else f"{run['status']}: {details}"
    return "finished, unknown to the SuperLink"


def runs(part: Path) -> list[dict[str, Any]]:
    """Return what the SuperLink says of its runs."""
    return list(_ask(part, ["list"])["runs"])


def nodes(part: Path) -> list[dict[str, Any]]:
    """Return what the SuperLink says of its nodes."""
    return list(_ask(part, ["supernode", "list"])["nodes"])


def _connected(part: Path) -> Path:
    """Tell Flower's command line where the SuperLink is; return the part's whole path."""
    part = part.resolve()
    write_connection(part, read_control(part).superlink)
    return part


def _ask(part: Path, question: list[str]) -> dict[str, Any]:
    done = run_flwr(_connected(part), [*question, SUPERLINK, "--format", "json"])
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"flwr {' '.join(question)}: {' '.join((done.stdout + done.stderr).split())}") from None
    if not answer.get("success", True):
        raise RuntimeError(f"flwr {' '.join(question)} said: {plain(answer['error-message'])}")
    return answer
