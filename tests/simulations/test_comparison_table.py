"""The tables of a comparison: known figures, gaps where results lack, marks where a rate is at the edge."""

import pytest
from comparisons import client, method, report, run

from simulations.comparison_table import document, group_table, search_table, sections


def rows_of(lines: str) -> list[dict[str, str]]:
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


MIXTURE = method("mixture", "mixture", [run(0, 2.0), run(1, 4.5)])


def test_a_line_has_the_spread_over_seeds_and_what_it_costs() -> None:
    (row,) = rows_of(group_table(report(a=MIXTURE), "federated"))
    assert row == {
        "method": "mixture",
        "learning rate": "0.1 (edge)",
        "perplexity": "3.000",
        "s.d.": "1.768",
        "range": "2.000 to 4.500",
        "seeds": "2",
        "against mixture": "",
        "parameters": "39,496",
        "MB a run": "2.00",
        "kB down + up": "3.0 + 1.5",
        "clients worse than backbone": "0 of 4",
    }


def test_a_method_is_set_against_the_first_mixture_seed_by_seed() -> None:
    other = method("other", "prompt", [run(0, 3.0), run(1, 4.5)])
    *_, row = rows_of(group_table(report(a=MIXTURE, b=other), "federated"))
    assert row["against mixture"] == "+22.5% (+0.0% to +50.0%)"  # the root of 1.5


def test_only_seeds_that_both_have_are_set_against_each_other() -> None:
    other = method("other", "prompt", [run(1, 9.0)])
    *_, row = rows_of(group_table(report(a=MIXTURE, b=other), "federated"))
    assert (row["against mixture"], row["seeds"]) == ("+100.0%", "1 of 2")


def test_a_group_with_a_mixture_has_its_own_reference_and_others_the_first_of_all() -> None:
    third = method("third", "mixture", [run(0, 4.0)], group="centralised")
    local = method("local", "reference", [run(0, 4.0)], group="local")
    found = report(a=MIXTURE, b=third, c=local)
    assert "against third" in rows_of(group_table(found, "centralised"))[0]
    assert rows_of(group_table(found, "local"))[0]["against mixture"] == "+100.0%"


def test_without_any_mixture_there_is_nothing_to_be_set_against() -> None:
    (row,) = rows_of(group_table(report(b=method("other", "prompt", [run(0, 3.0)])), "federated"))
    assert not [name for name in row if name.startswith("against")]


def test_what_a_method_does_not_have_is_empty() -> None:
    flat = method("flat", "reference", [run(0, 8.0)], learning_rate=None, at_edge=False, num_parameters=None, search={})
    *_, row = rows_of(group_table(report(a=MIXTURE, b=flat), "federated"))
    assert (row["learning rate"], row["parameters"], row["s.d."]) == ("", "", "")
    assert row["clients worse than backbone"] == "2 of 2"


def test_a_method_without_results_says_so() -> None:
    *_, row = rows_of(group_table(report(a=MIXTURE, b=method("other", "prompt", [])), "federated"))
    assert [row[name] for name in ("method", "perplexity", "seeds", "MB a run")] == ["other", "no result", "0 of 2", ""]


def test_the_search_shows_all_rates_the_chosen_one_in_bold() -> None:
    flat = method("flat", "reference", [run(0, 8.0)], search={})
    rows = rows_of(search_table(report(a=MIXTURE, b=flat)))
    assert rows == [
        {
            "method": "mixture",
            "group": "federated",
            "rate 1": "**3.000** (0.1)",
            "rate 2": "no result (0.2)",
            "at the edge": "yes",
        }
    ]


@pytest.mark.parametrize("search", [{}, {"rates": [0.1], "chosen": 0.1, "at_edge": False}])
def test_without_a_search_there_is_no_table_of_it(search: dict[str, object]) -> None:
    assert "search" not in sections(report(a=method("a", "mixture", [run(0, 8.0)], search=search)))


def test_the_sections_are_the_groups_the_summary_the_clients_and_the_search() -> None:
    prompt = method("prompt", "prompt", [run(0, 3.0)])
    local = method("local", "reference", [run(0, 4.0)], group="local", local_of="a")
    found = sections(report(a=MIXTURE, b=prompt, c=local))
    groups = ["federated", "local", "federated, in short", "local, in short"]
    assert list(found) == [*groups, "summary", "clients", "search"]


def test_a_group_in_short_has_the_best_method_first_and_the_backbone_last() -> None:
    prompt, without = method("prompt", "prompt", [run(0, 1.5)], num_parameters=7), method("none", "prompt", [])
    text = sections(report(a=MIXTURE, b=prompt, c=without))["federated, in short"]
    assert [[*row.values()] for row in rows_of(text)] == [
        ["prompt", "1.500", "", "1", "-25.0%", "7", "0 of 2"],
        ["mixture", "3.000", "1.768", "2", "", "39,496", "0 of 4"],
        ["backbone alone", "8.000", "0.000", "2", "", "0", ""],
    ]


def test_the_document_has_everything_and_names_what_failed() -> None:
    found = report(a=MIXTURE) | {"failed": {"b,seed=0,test": "training diverged"}}
    text = document(found)
    for part in (
        "fedmops compare skills",
        "Commit c0ffee, a processor, 2 cores. 2 of 2 runs have a result. Shared settings: num-rounds=2.",
        "## Federated",
        group_table(found, "federated").strip(),
        "(rounds.png)",
        "- b,seed=0,test: training diverged",
        "| a | mixture | num-experts=8 |  |",
    ):
        assert part in text


def test_a_document_without_results_has_no_plots() -> None:
    assert "png" not in document(report(a=method("a", "mixture", [])))


def test_a_client_that_is_not_better_or_did_not_reply_is_worse() -> None:
    worse = run(0, 3.0, [client(0, 8.0, 9.0), client(1, 8.0, None), client(2, 8.0, 1.0)])
    (row,) = rows_of(group_table(report(a=method("a", "mixture", [worse])), "federated"))
    assert row["clients worse than backbone"] == "2 of 3"
