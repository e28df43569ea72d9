"""The benchmark of a round without work: it runs the real rounds, and all clients answer."""

import json
import sys

from benchmarks import round_overhead
from benchmarks.round_overhead import SPEC, seconds_of_rounds
from common.backbone_source import distribution_root
from common.config import default_run_config, read_config
from common.mixture_spec import num_parameters
from server.run_directory import ROUNDS
from simulations.benchmark_pages.round_overhead import DOCUMENT, JSON, document


def test_all_clients_train_and_are_scored_in_every_round(tmp_path):
    for wire_format in ("float32", "int8"):
        seconds = seconds_of_rounds(3, 2, wire_format, tmp_path / wire_format)
        lines = [json.loads(line) for line in (tmp_path / wire_format / ROUNDS).read_text().splitlines()]
        assert seconds == [line["seconds"] for line in lines] and len(seconds) == 2
        assert [(line["num_clients_trained"], line["num_clients_evaluated"]) for line in lines] == [(3, 3)] * 2


def test_its_mixture_has_the_sizes_of_the_defaults():
    config = read_config(default_run_config(distribution_root()))
    assert config.mixture_spec(128, SPEC.kv_shapes, (), 0) == SPEC
    assert num_parameters(SPEC) == 33_872


def test_figures_are_written(tmp_path, monkeypatch, capsys):
    words = ["--clients", "2", "--rounds", "1", "--wire-formats", "float16", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["round_overhead", *words])
    round_overhead.main()
    assert "float16" in capsys.readouterr().out
    report = json.loads((tmp_path / JSON).read_text())
    assert [row["clients"] for row in report["rows"]] == [2]
    assert (tmp_path / DOCUMENT).read_text() == document(report)
