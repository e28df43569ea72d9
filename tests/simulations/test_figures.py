"""The figures of a finished run: of its result, of all rounds, of the last one."""

from pathlib import Path

import pytest
from fakes import FakeRuns

from simulations.figures import num_worse_clients, run_figures
from simulations.runs import Run, run_all


def run(directory: Path, *words: str) -> Path:
    run_all([Run(words, directory)], 1, lambda run, failure: None)
    return directory


def test_figures_are_the_results_the_mean_over_rounds_or_the_last_rounds(fake_runs: FakeRuns, tmp_path: Path) -> None:
    assert run_figures(run(tmp_path / "a", "temperature=3", "seed=1", "num-clients=2")) == {
        "perplexity": 6.0,
        "backbone_perplexity": 8.0,
        "num_worse_clients": 2,
        "num_parameters": 8 * 3 * 4 + (4 * 5 + 4) + (8 * 4 + 8),  # pool, and the gate's two layers
        "bytes_down_per_client_and_round": 2000.0,
        "bytes_up_per_client_and_round": 1000.0,
        "seconds": 5.0,
        "loss": 0.25,
        "gate_entropy": 0.5,
        "smallest_expert_use": 0.125,  # whatever number a last round may have
        "task_expert_information": 1.25,
    }


def test_one_expert_has_no_gate_and_so_no_gate_entropy(fake_runs: FakeRuns, tmp_path: Path) -> None:
    assert "gate_entropy" not in run_figures(run(tmp_path / "a", "num-experts=1"))


@pytest.mark.parametrize("card", ["{'peft_type': 'LORA', 'r': 8}", ""])
def test_a_method_without_prompts_and_gate_has_no_figures_of_them(
    fake_runs: FakeRuns, tmp_path: Path, card: str
) -> None:
    fake_runs.code["a"] = f"write('adapter_config.json', {card})" if card else "(directory / CARD).unlink()"
    fake_runs.code["a"] += "\nfor name in ('gate_entropy', 'smallest_expert_use'): del rounds[-1][name]"
    fake_runs.code["a"] += "\nwrite_rounds()"
    figures = run_figures(run(tmp_path / "a", "temperature=3"))
    assert figures["perplexity"] == 3.0
    assert not figures.keys() & {"num_parameters", "gate_entropy", "smallest_expert_use"}


def test_a_result_that_counts_its_parameters_is_believed(fake_runs: FakeRuns, tmp_path: Path) -> None:
    fake_runs.code["a"] = "result['num_parameters'] = 24_576"
    assert run_figures(run(tmp_path / "a"))["num_parameters"] == 24_576


def test_a_run_without_result_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the run left no result in "):
        run_figures(tmp_path)


def test_a_client_that_is_no_better_or_does_not_reply_is_worse() -> None:
    clients = [{"backbone_perplexity": 4.0, "perplexity": 3.9}, {"backbone_perplexity": 4.0, "perplexity": 4.0}]
    assert num_worse_clients({"clients": [*clients, {"backbone_perplexity": 4.0}]}) == 2
