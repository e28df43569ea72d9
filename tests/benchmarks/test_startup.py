"""The benchmark of starts: what it starts runs, and a start that fails is no figure."""

import json
import subprocess
import sys

import pytest

from benchmarks import startup
from simulations.benchmark_pages.startup import DOCUMENT, JSON, PEER, document


def test_every_start_is_measured_and_the_first_is_not_counted(tmp_path, monkeypatch, capsys):
    begun = []
    light = {PEER: lambda directory: begun.append(directory), "host": startup.host_answers}
    monkeypatch.setattr(startup, "STARTS", light)
    monkeypatch.setattr(sys, "argv", ["startup", "--repeats", "1", "--output", str(tmp_path)])
    startup.main()
    assert len(set(begun)) == 2 and "import peft" in capsys.readouterr().out
    report = json.loads((tmp_path / JSON).read_text())
    assert [(row["start"], len(row["seconds"])) for row in report["rows"]] == [(PEER, 1), ("host", 1)]
    assert (tmp_path / DOCUMENT).read_text() == document(report)


def test_a_start_that_fails_is_no_figure(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        startup.imports("no_such_module")(tmp_path)
