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
        "num_parameters": 160,
        "bytes_down_per_client_and_round": 2000.0,
        "bytes_up_per_client_and_round": 1000.0,
        "seconds": 5.0,
        "loss": 0.25,
        "gate_entropy": 0.5,
        "smallest_expert_use": 0.125,  # whatever number a last round may have
        "task_expert_information": 1.25,
    }


def test_a_run_without_a_mixture_has_figures_too(fake_runs: FakeRuns, tmp_path: Path) -> None:
    """A hand-written prompt, or clients that keep their own, leave no card, and a round without a gate none of it."""
    gate = {"gate_entropy", "expert_use", "smallest_expert_use", "task_expert_information", "loss"}
    fake_runs.code["a"] = (
        "(directory / CARD).unlink()\n"
        "result |= {'num_parameters': 0, 'personalised_perplexity': 1.5}\n"
        f"for name in {sorted(gate)}: del rounds[-1][name]\n"
        "write_rounds()"
    )
    figures = run_figures(run(tmp_path / "a", "temperature=3"))
    assert (figures["perplexity"], figures["num_parameters"], figures["personalised_perplexity"]) == (3.0, 0, 1.5)
    assert not gate & figures.keys()


def test_measures_are_figures_by_name(fake_runs: FakeRuns, tmp_path: Path) -> None:
    fake_runs.code["a"] = "result |= {'backbone_measures': {'rouge-l': 0.125}, 'measures': {'rouge-l': 0.5}}"
    figures = run_figures(run(tmp_path / "a", "temperature=3"))
    assert (figures["backbone_rouge_l"], figures["rouge_l"]) == (0.125, 0.5)


def test_a_run_without_result_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the run left no result in "):
        run_figures(tmp_path)


def test_a_client_that_is_no_better_or_does_not_reply_is_worse() -> None:
    clients = [{"backbone_perplexity": 4.0, "perplexity": 3.9}, {"backbone_perplexity": 4.0, "perplexity": 4.0}]
    assert num_worse_clients({"clients": [*clients, {"backbone_perplexity": 4.0}]}) == 2
