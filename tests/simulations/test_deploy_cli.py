"""fedmops deploy on the command line: what it shows of nodes and runs."""

from pathlib import Path

import pytest

from deployment import folder, run
from simulations import deploy_cli


def test_status_tells_since_when_a_node_is_there_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.init(tmp_path / "federation", "127.0.0.1", 8000, 1)
    rows = [
        {"node-id": "1", "status": "online", "online-at": "9:00", "offline-at": "8:00"},
        {"node-id": "2", "status": "offline", "online-at": "9:00", "offline-at": "9:30"},
        {"node-id": "3", "status": "registered", "online-at": "N/A", "offline-at": "N/A"},
    ]
    monkeypatch.setattr(run, "nodes", lambda part: rows)
    runs = [{"run-id": "7", "status": "running", "running-at": "9:01", "finished-at": "N/A"}]
    monkeypatch.setattr(run, "runs", lambda part: runs)
    deploy_cli.status_command(tmp_path / "federation" / "control")
    assert capsys.readouterr().out.splitlines() == [
        "node 1: online since 9:00",
        "node 2: offline since 9:30",
        "node 3: registered",
        "run 7: running, since 9:01",
    ]
