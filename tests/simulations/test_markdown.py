"""Markdown tables: what a cell says of figures over seeds."""

import math

import pytest

from simulations.markdown import mean, spread, table, traffic


def test_a_table_has_a_head_and_a_line_for_each_row_and_a_bar_stays_in_its_cell() -> None:
    assert table(["a", "b"], [["1", "x|y"], ["2", ""]]) == "| a | b |\n|---|---|\n| 1 | x\\|y |\n| 2 |  |\n"


def test_a_spread_is_geometric_mean_deviation_and_range() -> None:
    assert spread([3.0, 6.0, 12.0]) == ["6.000", "4.583", "3.000 to 12.000"]


@pytest.mark.parametrize(("values", "written"), [([2.0], "2.000"), ([2.0, math.inf], "inf")])
def test_one_value_and_one_without_bounds_have_no_deviation(values: list[float], written: str) -> None:
    assert spread(values)[:2] == [written, ""]


def test_a_mean_is_over_the_rows_that_have_the_figure() -> None:
    assert mean([{"a": 1.0}, {"a": 2.0}, {}], "a", str) == "1.5"
    assert mean([{}], "a", str) == ""


def test_traffic_is_in_kilobytes_down_and_up() -> None:
    names = ("bytes_down_per_client_and_round", "bytes_up_per_client_and_round")
    assert traffic([dict(zip(names, (2000, 500), strict=True)), dict(zip(names, (4000, 500), strict=True))]) == (
        "3.0 + 0.5"
    )
