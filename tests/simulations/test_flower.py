"""The ray engine runs an app to its end, tells the truth about it and leaves nothing behind."""

import os
import tomllib
from pathlib import Path

import pytest

from common.flower_processes import to_toml
from simulations.flower import run_on_ray

PYPROJECT = """
[project]
name = "minimal-app"
version = "0.1.0"
description = "An app for one test"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "minimal_server:app"
clientapp = "minimal_client:app"
[tool.flwr.app.config]
result = ""
fail = false
"""

CLIENT = """
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)
"""

SERVER = """
import os
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

@app.main()
def main(grid: Grid, context: Context) -> None:
    result = Path(context.run_config["result"])
    result.write_text(os.environ["FLWR_HOME"])
    if context.run_config["fail"]:
        raise ValueError("on purpose")
    deadline = time.monotonic() + 30
    while len(list(grid.get_node_ids())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # Flower registers its nodes while the ServerApp already runs
    messages = [Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=60))
    answers = sum(reply.has_content() for reply in replies)
    result.write_text(f"{os.environ['FLWR_HOME']}|{os.environ['TEST_MARK']}|{answers} answers")
"""


@pytest.fixture
def app_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "minimal-app"
    directory.mkdir()
    (directory / "pyproject.toml").write_text(PYPROJECT)
    (directory / "minimal_client.py").write_text(CLIENT)
    (directory / "minimal_server.py").write_text(SERVER)
    return directory


def left_behind(*marks: str) -> list[str]:
    """Return the processes with a mark in command line, environment or working directory.

    All three, for Ray's agents overwrite the first two with their title.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            traces = [(process / "cmdline").read_bytes(), (process / "environ").read_bytes()]
            traces.append(os.readlink(process / "cwd").encode())
        except OSError:  # ended, a zombie, or another user's
            continue
        if any(mark.encode() in trace for mark in marks for trace in traces):
            found.append(f"{process.name}: {traces[0]!r:.200}")
    return found


@pytest.mark.slow
def test_a_run_ends_with_its_true_status_and_leaves_no_process(
    app_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MARK", str(tmp_path))
    result = tmp_path / "the 'result' of a \"run\".txt"

    outcome = run_on_ray(app_directory, {"result": str(result)}, 2, 1, 0.0, tmp_path / "good")
    assert outcome.status == "finished:completed", outcome.log_path.read_text()
    flwr_home, mark, answers = result.read_text().split("|")
    assert (mark, answers) == (str(tmp_path), "2 answers")
    assert left_behind(str(tmp_path), flwr_home) == []
    assert not Path(flwr_home).exists()

    outcome = run_on_ray(app_directory, {"result": str(result), "fail": True}, 2, 1, 0.0, tmp_path / "failing")
    assert outcome.status == "finished:failed"
    assert "on purpose" in outcome.details
    assert "on purpose" in outcome.log_path.read_text()
    assert left_behind(str(tmp_path), result.read_text()) == []

    with pytest.raises(RuntimeError, match=r"Invalid run configuration.*flower\.log"):
        run_on_ray(app_directory, {"no-such-key": 1}, 2, 1, 0.0, tmp_path / "refused")
    assert left_behind(str(tmp_path)) == []


def test_overrides_survive_toml() -> None:
    overrides: dict[str, str | int | float | bool] = {
        "name": 'it\'s "quoted" = C:\\x\n\t#ä😀',
        "a.b": "dotted",
        "flag": True,
        "count": -3,
        "rate": 1e-5,
        "large": 1e20,
        "empty": "",
    }
    assert tomllib.loads(to_toml(overrides)) == overrides
