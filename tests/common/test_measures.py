"""Measures' names and sums."""

import pytest

from common.measures import MEASURES, MeasureSum, means, read_measures


def test_names_are_read():
    assert read_measures("") == read_measures("  ") == ()
    assert read_measures("rouge-l, exact-match") == ("rouge-l", "exact-match")
    assert read_measures(",".join(MEASURES)) == MEASURES


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rouge", "measures must be some of exact-match, rouge-l, choice-accuracy, .* got 'rouge'"),
        ("exact-match,", "got ''"),
        ("rouge-l,rouge-l", "measures must name each measure once, got 'rouge-l,rouge-l'"),
    ],
)
def test_other_names_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_measures(text)


def test_sums_add_up():
    assert MeasureSum(1.5, 2) + MeasureSum(1.0, 3) == MeasureSum(2.5, 5)
    assert MeasureSum(2.5, 5).mean == 0.5


def test_means_are_over_examples_and_say_nothing_of_what_was_not_measured():
    of_tasks = [
        {"rouge-l": MeasureSum(3.0, 4), "exact-match": MeasureSum(1.0, 4)},
        {"rouge-l": MeasureSum(0.0, 1)},
        {},
    ]
    assert means(of_tasks) == {"exact-match": 0.25, "rouge-l": 0.6}
    assert list(means(of_tasks)) == ["exact-match", "rouge-l"]  # always in the same order
    assert means([]) == {}
