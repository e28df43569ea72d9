"""What one simulation hands to its engine."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from simulations import flower
from simulations.simulate import Engine, simulate


def test_ray_gets_absolute_paths_as_its_processes_work_elsewhere(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_backbone, "model")
    given: dict[str, Any] = {}

    def run_on_ray(root: Path, run_config: dict[str, Any], *_: Any) -> SimpleNamespace:
        given.update(run_config)
        return SimpleNamespace(status="finished:failed", details="as told", log_path="log")

    monkeypatch.setattr(flower, "run_on_ray", run_on_ray)
    with pytest.raises(RuntimeError, match="Flower says finished:failed: as told"):
        simulate(["backbone=./model", "run-directory=here"], Engine.RAY, 1, 0.0, Console(quiet=True))
    assert given["backbone"] == str(tmp_path / "model")
    assert given["run-directory"] == str(tmp_path / "here")
    assert (given["data"], given["prompt-init"]) == ("skills", "random")
