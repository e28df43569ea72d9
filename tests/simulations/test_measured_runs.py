"""Whole runs that measure more than perplexity: of mixtures, baselines and hand-written prompts."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file

import common.measures
import common.partition
from client.adapter import AdaptedBackbone
from client.app import app as client_app
from client.hand_written import with_hand_written_prompt
from client.measurer import measure
from client.partition_data import load_partition_data, longest_text
from common.backbone import load_backbone
from common.config import Config, read_config
from common.data.load import Reading
from common.example import Example
from common.injection import PromptedBackbone
from common.measures import MEASURES, TEXT_MEASURES, means
from common.mixture import Mixture
from common.mixture_file import WEIGHTS, read_mixture
from server.app import app as server_app
from simulations.inline import run_inline
from simulations.simulate import Engine, check_measures, simulate

RunConfig = Callable[..., dict[str, Any]]

pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'fedmops[measures]'")
pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"measures": ",".join(MEASURES), "measure_examples": 1, "max_answer_tokens": 4}


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every example but those of one task have choices."""
    read = common.partition.read_data

    def with_choices(*args: Any) -> Reading:
        found = read(*args)
        examples = (
            each
            if each.task == "add"
            else replace(each, choices=(each.output[:-1] + "q", each.output, each.output[:-1] + "z"))
            for each in found.examples
        )
        return replace(found, examples=tuple(examples))

    monkeypatch.setattr(common.partition, "read_data", with_choices)


def run(run_config: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    run_inline(server_app, client_app, run_config, run_config["num-clients"])
    result = json.loads((Path(run_config["run-directory"]) / "result.json").read_text())
    return read_config(run_config), result


def measured(config: Config, model: Any, asked: Any) -> dict[str, float]:
    limits = (config.measure_examples, config.max_answer_tokens, longest_text(config, load(config)))
    return means(measure(model, asked.examples, asked.tokenized, MEASURES, *limits).values())


def load(config: Config) -> Any:
    return load_backbone(config.backbone, config.quantization, config.device)


@pytest.mark.usefixtures("choices")
def test_a_mixture_is_measured_as_it_is_saved(run_config: RunConfig) -> None:
    config, result = run(run_config(**SETTINGS, learning_rate=1.0))
    backbone, saved = load(config), read_mixture(Path(config.run_directory))
    mixture = Mixture(saved.spec)
    mixture.load_arrays(saved.arrays)
    different = 0
    for row in result["clients"]:
        asked = load_partition_data(config, row["client"], backbone).evaluation
        assert row["backbone_measures"] == measured(config, backbone, asked)
        with PromptedBackbone(backbone, mixture) as prompted:
            assert row["measures"] == measured(config, prompted, asked)
        different += row["backbone_measures"] != row["measures"]
        for of_task in row["measures_by_task"]:
            names = TEXT_MEASURES if of_task["task"] == "add" else MEASURES
            assert tuple(of_task["backbone_measures"]) == tuple(of_task["measures"]) == names
    assert different


@pytest.mark.usefixtures("choices")
@pytest.mark.parametrize("method", ["lora", "prefix-tuning"])
def test_a_baseline_is_measured(run_config: RunConfig, method: str) -> None:
    config, result = run(run_config(**SETTINGS, method=method, num_virtual_tokens=4, lora_rank=2))
    backbone = load(config)
    weights = load_file(Path(config.run_directory) / WEIGHTS)
    for row in result["clients"]:
        asked = load_partition_data(config, row["client"], backbone).evaluation
        with AdaptedBackbone(backbone, config, ()) as adapted:
            adapted.load_arrays(weights)
            assert row["measures"] == measured(config, adapted, asked)
        assert row["backbone_measures"] == measured(config, backbone, asked)


@pytest.mark.usefixtures("choices")
def test_a_hand_written_prompt_is_measured(run_config: RunConfig) -> None:
    config, result = run(run_config(**SETTINGS, method="hand-written", prompt_text="Answer in short.", num_shots=1))
    backbone = load(config)
    for row in result["clients"]:
        data = load_partition_data(config, row["client"], backbone)
        assert row["backbone_measures"] == measured(config, backbone, data.evaluation)
        assert row["measures"] == measured(config, backbone, with_hand_written_prompt(config, data, backbone))


def test_personal_steps_are_not_measured(run_config: RunConfig) -> None:
    config, result = run(run_config(measures="exact-match", max_answer_tokens=2, num_personal_steps=1))
    assert "personalised_perplexity" in result
    found = [json.loads(line) for line in (Path(config.run_directory) / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in found if "measures" in line} == {"backbone", "mixture"}


def test_simulate_prints_them(small_run: dict[str, Any], tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in small_run.items()]
    words += ["measures=exact-match,rouge-l", "max-answer-tokens=4", f"run-directory={tmp_path / 'run'}"]
    output = io.StringIO()
    simulate(words, Engine.INLINE, 1, 0.0, Console(file=output, width=100))
    shown = output.getvalue()
    for said in ("Measures of the answers, per client", "exact match", "ROUGE-L", "mean over clients"):
        assert said in shown
    assert shown.count("→") >= 1 + 2 * 4


def test_choices_that_no_example_has_are_refused_before_the_run(small_run: dict[str, Any], tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in small_run.items()]
    words += ["measures=exact-match,choice-accuracy", f"run-directory={tmp_path / 'run'}"]
    reason = "choice-accuracy needs examples with choices, and the test examples of data=skills have none: leave it out"
    with pytest.raises(ValueError, match=reason):
        simulate(words, Engine.INLINE, 1, 0.0, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_choices_count_in_the_evaluation_examples_alone(run_config: RunConfig) -> None:
    config = read_config(run_config(measures="choice-accuracy"))
    example = Example("train", "add", "", "", "add", "1 2", "3", ("3", "4"))
    with pytest.raises(ValueError, match="choice-accuracy needs examples with choices"):
        check_measures(config, [[example, replace(example, split="test", choices=())]])
    check_measures(config, [[example], [replace(example, split="test")]])


def test_a_missing_package_is_told_before_the_run(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.measures, "find_spec", lambda name: None)
    words = [f"{key}={value}" for key, value in small_run.items()]
    words += ["measures=rouge-l", f"run-directory={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"pip install 'fedmops\[measures\]'"):
        simulate(words, Engine.INLINE, 1, 0.0, Console(quiet=True))
    assert not (tmp_path / "run").exists()
