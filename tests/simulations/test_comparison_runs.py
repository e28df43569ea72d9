"""The runs of a comparison: their settings are checked before anything starts, and a search chooses the best rate."""

import tomllib
from pathlib import Path

import pytest
from comparisons import FLAT, SMALL
from fakes import FakeRuns

from simulations.comparison import parse_comparison
from simulations.comparison_runs import Plan
from simulations.runs import Run, run_all
from simulations.settings import resolve


def plan_of(text: str, output: Path, seeds: tuple[int, ...] = (0, 1)) -> Plan:
    plan = Plan(parse_comparison(tomllib.loads(text)), seeds, output)
    plan.write_shared()
    return plan


def settings_of(run: Run, *keys: str) -> list[object]:
    settings = resolve(run.words)
    return [settings[key] for key in keys]


def search(plan: Plan, name: str) -> dict[str, object]:
    """Run a method's search; return what it found."""
    method = plan.comparison.methods[name]
    runs = [plan.run(method, rate, seed, "validation") for rate in method.rates for seed in [0]]

    def ended(run: Run, failure: str | None) -> None:
        if failure:
            plan.failed[run.directory.name] = failure

    run_all(runs, 2, ended)
    return plan.searched(method)


KEYS = ("temperature", "learning-rate", "seed", "eval-split", "num-rounds", "num-clients")


def test_a_run_has_what_all_share_what_the_method_changes_its_rate_seed_and_split(tmp_path: Path) -> None:
    plan = plan_of(SMALL, tmp_path)
    run = plan.run(plan.comparison.methods["one-group"], 0.2, 7, "test")
    assert settings_of(run, *KEYS) == [2.0, 0.2, 7, "test", 8, 2]
    assert run.directory == tmp_path / "runs" / "one-group,rate=0.2,seed=7,test"
    assert run.source is None


@pytest.mark.parametrize(("num_rounds", "expected"), [("", 3), ("num-rounds = 2", 2)])
def test_the_search_has_its_rounds_but_no_more_than_the_runs(tmp_path: Path, num_rounds: str, expected: int) -> None:
    plan = plan_of(SMALL.replace("[search]", f"{num_rounds}\n[search]"), tmp_path)
    run = plan.run(plan.comparison.methods["one-group"], 0.2, 0, "validation")
    assert settings_of(run, "eval-split", "num-rounds") == ["validation", expected]


def test_a_method_that_learns_nothing_has_no_rate_and_no_search(tmp_path: Path) -> None:
    plan = plan_of(FLAT, tmp_path)
    run = plan.run(plan.comparison.methods["flat"], None, 0, "test")
    assert run.directory.name == "flat,seed=0,test"
    assert settings_of(run, "learning-rate") == [resolve([])["learning-rate"]]
    assert plan.searches() == []
    assert plan.searched(plan.comparison.methods["flat"]) == {}


def test_one_rate_needs_no_search(tmp_path: Path) -> None:
    plan = plan_of(FLAT + "rates = [0.3]", tmp_path)
    assert plan.searches() == []
    assert plan.searched(plan.comparison.methods["flat"]) == {"rates": [0.3], "chosen": 0.3, "at_edge": False}


def test_a_source_has_its_own_settings_the_methods_rate_and_full_length_and_serves_search_and_test(
    tmp_path: Path,
) -> None:
    plan = plan_of(SMALL + FLAT + "rates = [1, 2, 3]\nsource = { centralised = true }", tmp_path)
    method = plan.comparison.methods["flat"]
    source = plan.source(method, 2.0, 5)
    assert source is not None
    told = settings_of(source, "centralised", "learning-rate", "seed", "eval-split", "num-rounds")
    assert told == [True, 2.0, 5, "validation", 8]
    for split in ("validation", "test"):
        run = plan.run(method, 2.0, 5, split)
        assert run.source == source.directory == tmp_path / "runs" / "flat,rate=2,seed=5,source"
        assert settings_of(run, "centralised") == [False]


def test_a_shared_setting_may_be_void_for_one_method_but_a_methods_own_may_not(tmp_path: Path) -> None:
    plan_of(SMALL.replace("[search]", "gate = 'task'\n[search]") + FLAT + "settings = { num-experts = 1 }", tmp_path)
    plan = plan_of(FLAT + "settings = { num-experts = 1, gate = 'task' }", tmp_path)
    with pytest.raises(ValueError, match=r"methods\.flat\.settings: gate has no effect on one expert"):
        plan.check()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (FLAT + "settings = { num-experts = 0 }", r"methods\.flat\.settings: num-experts must be at least 1, got 0"),
        (FLAT + "source = { num-rounds = 0 }", r"methods\.flat\.source: num-rounds must be at least 1, got 0"),
        (FLAT + "rates = [1, 2]\nsettings = { num-experts = '8' }", "num-experts must be a whole number, got '8'"),
        ("[shared]\nnum-clients = 999\ntrain-examples = 4" + FLAT, r"methods\.flat\.settings: num-clients is 999, but"),
    ],
)
def test_a_bad_configuration_is_told_with_its_method(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan_of(text, tmp_path).check()


def test_the_smallest_perplexity_wins(fake_runs: FakeRuns, tmp_path: Path) -> None:
    fake_runs.always = "perplexity += abs(settings['learning-rate'] - 0.2)"
    found = search(plan_of(SMALL, tmp_path), "mixture")
    assert found["rates"] == [0.1, 0.2, 0.4]
    assert found["perplexity"] == pytest.approx([1.1, 1.0, 1.2])
    assert (found["chosen"], found["at_edge"]) == (0.2, False)


def test_of_equal_rates_the_first_wins(fake_runs: FakeRuns, tmp_path: Path) -> None:
    assert search(plan_of(SMALL, tmp_path), "mixture")["chosen"] == 0.1


@pytest.mark.parametrize(("best", "rate"), [("0.1", 0.1), ("0.4", 0.4)])
def test_a_winner_at_either_end_of_the_rates_is_at_the_edge(
    fake_runs: FakeRuns, tmp_path: Path, best: str, rate: float
) -> None:
    fake_runs.code[f"mixture,rate={best},seed=0,validation"] = "perplexity = 0.5"
    found = search(plan_of(SMALL, tmp_path), "mixture")
    assert (found["chosen"], found["at_edge"]) == (rate, True)


@pytest.mark.parametrize("code", ["sys.exit('failed: training diverged')", "perplexity = float('inf')"])
def test_a_run_that_diverges_is_infinitely_bad(fake_runs: FakeRuns, tmp_path: Path, code: str) -> None:
    for rate in ("0.1", "0.4"):
        fake_runs.code[f"mixture,rate={rate},seed=0,validation"] = code
    found = search(plan_of(SMALL, tmp_path), "mixture")
    assert (found["perplexity"], found["chosen"], found["at_edge"]) == ([None, 1.0, None], 0.2, False)


def test_where_all_diverge_nothing_is_chosen(fake_runs: FakeRuns, tmp_path: Path) -> None:
    fake_runs.always = "sys.exit('failed: training diverged')"
    found = search(plan_of(SMALL, tmp_path), "mixture")
    assert (found["perplexity"], found["chosen"], found["at_edge"]) == ([None] * 3, None, False)


def test_nothing_is_chosen_before_all_runs_have_ended(fake_runs: FakeRuns, tmp_path: Path) -> None:
    plan = plan_of(SMALL, tmp_path)
    method = plan.comparison.methods["mixture"]
    run_all([plan.run(method, rate, 0, "validation") for rate in (0.1, 0.2)], 2, lambda run, failure: None)
    found = plan.searched(method)
    assert (found["perplexity"], found["chosen"]) == ([1.0, 1.0, None], None)


def test_a_rate_is_judged_by_the_geometric_mean_over_the_searchs_seeds(fake_runs: FakeRuns, tmp_path: Path) -> None:
    plan = plan_of(SMALL.replace("seeds = [0]", "seeds = [0, 2]"), tmp_path)
    method = plan.comparison.methods["mixture"]
    runs = [plan.run(method, rate, seed, "validation") for rate in method.rates for seed in (0, 2)]
    run_all(runs, 2, lambda run, failure: None)
    assert plan.searched(method)["perplexity"] == pytest.approx([2.0] * 3)  # of 1 and 4


def test_the_method_that_another_is_searched_as_is_searched_even_when_it_is_not_compared(tmp_path: Path) -> None:
    plan = plan_of(SMALL + FLAT + 'searched-as = "mixture"', tmp_path)
    plan.comparison = plan.comparison.__class__(**(vars(plan.comparison) | {"compared": ("flat",)}))
    assert [method.name for method in plan.searches()] == ["mixture"]
