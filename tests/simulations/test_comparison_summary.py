"""The summary: the mixture against the best of each kind of baseline, in percent over seeds."""

import pytest
from comparisons import method, report, run

from simulations.comparison_summary import summary

MIXTURE = method("ours", "mixture", [run(0, 1.0), run(1, 2.0)])


def test_the_mixture_is_set_against_the_best_baselines() -> None:
    equal = method("one group", "prompt", [run(0, 2.0), run(1, 2.5)], equal_bytes=True)
    large = method("large", "prompt", [run(0, 1.25), run(1, 2.0)])
    bad = method("bad", "prompt", [run(0, 7.0), run(1, 7.0)], equal_bytes=True)
    lora = method("lora", "lora", [run(0, 0.5), run(1, 2.0)], equal_bytes=True)
    text = summary(report(a=MIXTURE, b=bad, c=equal, d=large, e=lora))
    assert text == (
        "Group federated: *ours* has perplexity 1.414. "
        "The best prompt baseline at equal bytes, *one group*, has 2.236: the mixture is 36.8% below it "
        "(2 seeds, by seed 20.0% below to 50.0% below). "
        "The best prompt baseline overall, *large*, has 1.581: the mixture is 10.6% below it "
        "(2 seeds, by seed 0.0% below to 20.0% below). "
        "The best LoRA at equal bytes and the best LoRA overall, *lora*, has 1.000: the mixture is 41.4% above it "
        "(2 seeds, by seed 100.0% above to 0.0% below). "
        "Clients no better than their backbone alone, over all seeds: 0 of 4 with *ours*, 0 of 4 with *one group*, "
        "0 of 4 with *large*, 0 of 4 with *lora*.\n"
    )


def test_the_first_mixture_speaks_for_all_of_its_group() -> None:
    better = method("chosen afterwards", "mixture", [run(0, 0.5)])
    text = summary(report(a=MIXTURE, b=better, c=method("p", "prompt", [run(0, 2.0)])))
    assert "*ours*" in text
    assert "chosen afterwards" not in text


def test_only_common_seeds_count_and_one_seed_has_no_spread() -> None:
    text = summary(report(a=MIXTURE, b=method("p", "prompt", [run(1, 4.0)])))
    assert "has 4.000: the mixture is 50.0% below it (one seed)." in text


def test_each_group_has_a_paragraph() -> None:
    groups = [{"group": group} for group in ("federated", "centralised")]
    methods = {
        f"{kind}{index}": method(f"{kind} {index}", kind, [run(0, 2.0)], **group)
        for index, group in enumerate(groups)
        for kind in ("mixture", "prompt")
    }
    assert [line[:18] for line in summary(report(**methods)).split("\n\n")] == [
        "Group federated: *",
        "Group centralised:",
    ]


@pytest.mark.parametrize("other", [method("b", "reference", [run(0, 2.0)]), method("b", "prompt", [])])
def test_without_a_baseline_that_has_results_there_is_no_summary(other: dict[str, object]) -> None:
    assert summary(report(a=MIXTURE, b=other)) == ""
