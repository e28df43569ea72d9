"""What messages weigh: in fewer bits less, and as the planned number of parameters says."""

import json
import sys

import pytest

from benchmarks import wire
from simulations.benchmark_pages.wire import DOCUMENT, JSON, document


def test_messages_of_a_shape_are_weighed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wire", "--shapes", "llama-3.1-8b", "--output", str(tmp_path)])
    wire.main()
    assert "llama-3.1-8b" in capsys.readouterr().out
    report = json.loads((tmp_path / JSON).read_text())
    up = {(row["method"], row["wire_format"]): row["bytes_up"] for row in report["rows"]}
    (parameters,) = {row["parameters"] for row in report["rows"] if row["method"] == "mixture"}
    assert up["mixture", "float32"] == pytest.approx(4 * parameters, rel=0.01)
    assert up["mixture", "float16"] == pytest.approx(2 * parameters, rel=0.01)
    assert parameters < up["mixture", "int8"] < 2 * 2**20  # the target for this shape: 2 MiB
    assert up["mixture", "float32"] < 0.5 * up["LoRA, r = 8 on q and v", "float32"]
    assert (tmp_path / DOCUMENT).read_text() == document(report)
