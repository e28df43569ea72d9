"""What one simulation hands to its engine."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from rich.console import Console

from simulations import flower
from simulations.simulate import Engine, simulate


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the engine Ray is given, once it is."""
    given: dict[str, Any] = {}

    def run_on_ray(root: Path, run_config: dict[str, Any], *_: Any) -> SimpleNamespace:
        given.update(run_config)
        return SimpleNamespace(status="finished:failed", details="as told", log_path="log")

    monkeypatch.setattr(flower, "run_on_ray", run_on_ray)
    return given


def test_ray_gets_absolute_paths_as_its_processes_work_elsewhere(
    given: dict[str, Any], tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_backbone, "model")
    with pytest.raises(RuntimeError, match="Flower says finished:failed: as told"):
        simulate(["backbone=./model", "run-directory=here"], Engine.RAY, 1, 0.0, Console(quiet=True))
    assert given["backbone"] == str(tmp_path / "model")
    assert given["run-directory"] == str(tmp_path / "here")
    assert (given["data"], given["prompt-init"]) == ("skills", "random")


def test_data_is_a_path_for_ray_where_it_is_one_here(
    given: dict[str, Any], tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in range(60)]
    Path("mine").mkdir()
    Path("mine/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: real("json", data_files="mine/rows.jsonl", cache_dir="cache")
    )
    for data, path in (("mine", str(tmp_path / "mine")), ("owner/name", "owner/name")):
        with pytest.raises(RuntimeError, match="as told"):
            simulate(
                [f"backbone={tiny_backbone}", f"data={data}", "num-clients=2"], Engine.RAY, 1, 0.0, Console(quiet=True)
            )
        assert given["data"] == path


def test_what_was_cut_left_out_or_skipped_is_said_below_the_table(small_run: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n:02}", "output": "yes"} for n in range(60)]
    rows[:3] = [{"instruction": "say 0" + 40 * "!", "output": "yes"}, {"instruction": "", "output": "yes"}, {}]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row | {"split": "train" if n < 40 else "test"}) for n, row in enumerate(rows)))
    changes = {"data": path, "skip-bad-rows": "true", "max-sequence-tokens": 20, "train-examples": 99, "num-rounds": 1}
    said = {}
    for partition in ("iid", "own"):
        own = {"partition": partition, "run-directory": tmp_path / partition, "eval-examples": 20}
        output = io.StringIO()
        words = [f"{key}={value}" for key, value in (small_run | changes | own).items()]
        simulate(words, Engine.INLINE, 1, 0.0, Console(file=output, width=100))
        said[partition] = next(line for line in output.getvalue().splitlines() if line.startswith("data: "))
    assert said["iid"] == (
        "data: the prompts of 1 training and 0 evaluation examples are cut, as they are too long; "
        "2 bad rows are skipped"
    )
    assert "the prompts of 3 training and 0 evaluation examples are cut" in said["own"]  # the same data three times
    assert "; 6 bad rows are skipped" in said["own"]
