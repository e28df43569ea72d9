"""The plot: dots where the measurements are, a line through the geometric means, scales as the values ask."""

import subprocess
import sys
from typing import Any

import pytest
from matplotlib.figure import Figure

from simulations.plot import draw

PNG = b"\x89PNG\r\n\x1a\n"


def lines_of(figure: Figure) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()]  # type: ignore[arg-type]


def test_one_key_has_a_dot_for_each_seed_and_a_line_through_the_geometric_means(drawn: list[Figure]) -> None:
    measured = [((2,), 3.0), ((2,), 12.0), ((1,), 2.0), ((1,), 8.0)]
    png = draw(["batch-size"], measured, "perplexity (validation split)")
    assert png.startswith(PNG)
    (figure,) = drawn
    (xs, means), dots = lines_of(figure)
    assert xs == [1, 2]
    assert means == pytest.approx([4.0, 6.0])
    assert dots == ([2, 2, 1, 1], [3.0, 12.0, 2.0, 8.0])
    axes = figure.axes[0]
    assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "None"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("batch-size", "perplexity (validation split)")
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [(place, label.get_text()) for place, label in ticks] == [(2, "2"), (1, "1")]
    assert axes.get_legend() is None


def test_the_second_key_has_a_line_for_each_value_and_a_legend(drawn: list[Figure]) -> None:
    measured = [((1, True), 2.0), ((2, True), 3.0), ((1, False), 4.0)]
    draw(["batch-size", "standardise-gate-input"], measured, "perplexity")
    lines = lines_of(drawn[0])
    assert lines[0] == ([1, 2], pytest.approx([2.0, 3.0]))
    assert lines[2] == ([1], pytest.approx([4.0]))
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "standardise-gate-input"
    assert [text.get_text() for text in legend.get_texts()] == ["true", "false"]
    colours = [line.get_color() for line in drawn[0].axes[0].get_lines()]
    assert colours[0] == colours[1] != colours[2] == colours[3]


@pytest.mark.parametrize(
    ("values", "scale"),
    [((0.1, 1, 2), "linear"), ((0.1, 1, 2.1), "log"), ((0, 1, 100), "linear"), ((-1, 1, 100), "linear")],
)
def test_positive_values_that_span_more_than_a_factor_20_have_a_log_scale(
    drawn: list[Figure], values: tuple[float, ...], scale: str
) -> None:
    draw(["temperature"], [((value,), 2.0) for value in values], "perplexity")
    assert (drawn[0].axes[0].get_xscale(), drawn[0].axes[0].get_yscale()) == (scale, "linear")


def test_perplexities_may_have_a_log_scale_too(drawn: list[Figure]) -> None:
    draw(["temperature"], [((1.0,), 1.5), ((2.0,), 40.0)], "perplexity")
    assert (drawn[0].axes[0].get_xscale(), drawn[0].axes[0].get_yscale()) == ("linear", "log")


@pytest.mark.parametrize(("values", "labels"), [(("z", "a_$b$", "a"), ["z", r"a_\$b\$", "a"]), ((True, False), None)])
def test_texts_and_truths_stand_side_by_side_in_their_order(
    drawn: list[Figure], values: tuple[Any, ...], labels: list[str] | None
) -> None:
    draw(["partition"], [((value,), 2.0) for value in values], "perplexity")
    assert lines_of(drawn[0])[1][0] == list(range(len(values)))
    shown = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert shown == (labels or ["true", "false"])


@pytest.mark.parametrize(("name", "angle"), [("usage", 0), ("usage+false+../shared/models/stories", 20)])
def test_long_texts_are_turned_so_that_none_runs_into_the_next(drawn: list[Figure], name: str, angle: float) -> None:
    draw(["gate"], [((name,), 1.0), (("both",), 2.0)], "perplexity")
    assert [label.get_rotation() for label in drawn[0].axes[0].get_xticklabels()] == [angle, angle]


def test_no_pyplot_is_loaded() -> None:
    code = "import sys, simulations.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_line_loads_no_matplotlib() -> None:
    code = "import sys, simulations.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
