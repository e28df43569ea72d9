"""The table of a sweep: known figures, gaps where runs are missing, and nothing of this machine's paths."""

import json
import math
import os
from pathlib import Path

import pytest
from fakes import SMALL, FakeRuns

from simulations.grid import points, read_axes
from simulations.runs import run_all
from simulations.sweep_table import Sweep, describe, sections, table, why_no_plot, write


def sweep_of(directory: Path, *over: str, seeds: tuple[int, ...] = (0, 1, 2)) -> Sweep:
    axes = read_axes(over, SMALL)
    found = points(SMALL, axes, seeds, "validation", directory)
    return Sweep("fedmops sweep", "validation", [axis.key for axis in axes], found)


def run_some(sweep: Sweep, *names: str) -> None:
    """Run those whose directory's name begins so."""
    runs = [point.run for point in sweep.points if point.run.directory.name.startswith(names)]
    run_all(runs, 2, lambda run, failure: None)


def rows_of(lines: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]


def test_a_line_has_geometric_mean_spread_and_costs_over_the_seeds(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "temperature=3", "standardise-gate-input=true")
    run_some(sweep, "")
    head, _, row = rows_of(table(describe(sweep)))
    figures = dict(zip(head, row, strict=True))
    assert figures == {
        "temperature": "3",
        "standardise-gate-input": "true",
        "perplexity": "6.000",  # of 3, 6 and 12
        "s.d.": "4.583",  # the root of (4² + 1² + 5²) / 2
        "range": "3.000 to 12.000",
        "seeds": "3",
        "backbone": "8.000",
        "gate entropy": "0.500",
        "information": "1.250",
        "least use": "12.5%",
        "parameters": "160",
        "kB down + up": "2.0 + 1.0",
    }


def test_values_of_a_key_stand_side_by_side_with_the_firsts_distance_from_the_last() -> None:
    figures = {("x", 1): [2.0, 8.0], ("x", 2): [5.0], ("y", 1): [3.0]}
    runs = [
        {"settings": {"a": a, "b": b}, "seed": seed, "perplexity": value, "backbone_perplexity": 9.0}
        for (a, b), values in figures.items()
        for seed, value in enumerate(values)
    ]
    report = {"axes": {"a": ["x", "y"], "b": [1, 2]}, "runs": [*runs, {"settings": {"a": "y", "b": 2}, "seed": 0}]}
    assert rows_of(sections(report)["across b"])[2:] == [
        ["x", "4.000", "5.000", "-20.0%", "2/1"],  # the geometric mean of 2 and 8, against 5
        ["y", "3.000", "no result", "", "1/0"],
    ]
    assert rows_of(sections(report)["across a"])[0] == ["b", "a=x", "a=y", "first against last", "seeds"]
    assert list(sections({"axes": {"a": ["x"]}, "runs": []})) == ["table"]


def test_a_gap_shows_in_the_table(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "temperature=1,2,3")
    run_some(sweep, "temperature=1,seed=1", "temperature=3")
    one, none, all_of_them = rows_of(table(describe(sweep)))[2:]
    assert one[:5] == ["1", "2.000", "", "2.000 to 2.000", "1 of 3"]
    assert none[:5] == ["2", "no result", "", "", "0 of 3"]
    assert all_of_them[4] == "3"


def test_one_expert_has_no_gate_entropy_in_the_table(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "num-experts=1,2")
    run_some(sweep, "")
    assert [row[6] for row in rows_of(table(describe(sweep)))[2:]] == ["", "0.500"]


def test_a_perplexity_without_bounds_has_no_deviation_and_no_place_in_the_plot(
    fake_runs: FakeRuns, tmp_path: Path
) -> None:
    sweep = sweep_of(tmp_path / "runs", "temperature=1", seeds=(0, 1))
    fake_runs.code["temperature=1,seed=0"] = "perplexity = float('inf')"
    run_some(sweep, "temperature=1,seed=0")
    write(sweep, tmp_path)
    assert not (tmp_path / "sweep.png").exists()
    run_some(sweep, "")
    assert rows_of(write(sweep, tmp_path))[2][1:4] == ["inf", "", "2.000 to inf"]
    assert (tmp_path / "sweep.png").exists()


def test_the_report_has_a_row_for_each_run(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "temperature=1,2", "num-experts=4", seeds=(0, 1))
    run_some(sweep, "temperature=1")
    report = describe(sweep)
    assert (report["command"], report["split"]) == ("fedmops sweep", "validation")
    assert (report["commit"], report["versions"]) == ("c0ffee", {"torch": "2.0"})
    assert report["axes"] == {"temperature": [1.0, 2.0], "num-experts": [4]}
    assert report["machine"]["num_cores"] >= 1
    assert report["machine"]["processor"]
    assert [(*row["settings"].values(), row["seed"]) for row in report["runs"]] == [
        (1.0, 4, 0),
        (1.0, 4, 1),
        (2.0, 4, 0),
        (2.0, 4, 1),
    ]
    assert report["runs"][1]["perplexity"] == 2.0
    assert report["runs"][1]["smallest_expert_use"] == 0.125
    assert list(report["runs"][2]) == ["settings", "seed"]


def test_runs_of_two_commits_name_both(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "temperature=1,2", seeds=(0,))
    fake_runs.code["temperature=2,seed=0"] = "write('versions.json', {'commit': 'decaf', 'torch': '2.0'})"
    run_some(sweep, "")
    report = describe(sweep)
    assert (report["commit"], report["versions"]) == ("c0ffee, decaf", {"torch": "2.0"})


def test_all_files_are_written_whole_and_name_no_path_of_this_machine(fake_runs: FakeRuns, tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path / "runs", "temperature=1,2", seeds=(0,))
    write(sweep, tmp_path)
    assert "0 of 2 runs have a result" in (tmp_path / "sweep.md").read_text()
    assert not (tmp_path / "sweep.png").exists()
    run_some(sweep, "")
    lines = write(sweep, tmp_path)
    document = (tmp_path / "sweep.md").read_text()
    assert lines in document
    assert "2 of 2 runs have a result" in document
    assert "validation split" in document
    assert "(sweep.png)" in document
    assert json.loads((tmp_path / "sweep.json").read_text()) == describe(sweep)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in document + (tmp_path / "sweep.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "sweep.json", "sweep.md", "sweep.png"]


def test_a_crash_while_writing_leaves_the_old_table(
    fake_runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tmp_path / "runs", "temperature=1", seeds=(0,))
    write(sweep, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("sweep.*")}
    run_some(sweep, "")

    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, 10)
        raise OSError("the disk is full")

    monkeypatch.setattr("common.atomic_file.os.fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        write(sweep, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("sweep.*")} == before


def test_three_keys_have_no_plot_and_the_table_says_so(fake_runs: FakeRuns, tmp_path: Path) -> None:
    (tmp_path / "sweep.png").write_bytes(b"of an earlier sweep")
    sweep = sweep_of(tmp_path / "runs", "temperature=1", "batch-size=2", "num-rounds=3", seeds=(0,))
    run_some(sweep, "")
    write(sweep, tmp_path)
    assert not (tmp_path / "sweep.png").exists()
    assert "no plot: 3 keys are swept, it shows one or two" in (tmp_path / "sweep.md").read_text()
    assert [why_no_plot([*"ab"]), why_no_plot([*"a"])] == [None, None]


def test_a_bar_in_a_value_stays_in_its_cell() -> None:
    row = {"settings": {"name": "a|b"}, "seed": 0, "perplexity": math.e, "backbone_perplexity": 2.0}
    report = {"axes": {"name": ["a|b"]}, "runs": [row | {"bytes_down_per_client_and_round": 1.0}]}
    assert rows_of(table(report))[2][:2] == [r"a\|b", "2.718"]
