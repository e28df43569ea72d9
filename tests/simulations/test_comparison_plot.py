"""The plots of a comparison: means with a band, a line or column for each method, scales as promised."""

import math
from itertools import pairwise

import pytest
from comparisons import client, method, report, run
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from simulations.comparison_plot import COLOURS, GREY, plots

FOUND = report(
    a=method("ours", "mixture", [run(0, 1.0), run(1, 4.0)]),
    b=method("costs $5", "prompt", [run(0, 3.0)]),
    c=method("not yet", "prompt", []),
)


def test_there_are_three_pngs_and_none_without_results() -> None:
    found = plots(FOUND)
    assert list(found) == ["rounds.png", "bytes.png", "clients.png"]
    assert all(png.startswith(b"\x89PNG\r\n\x1a\n") for png in found.values())
    assert plots(report(a=method("a", "mixture", []))) == {}


@pytest.mark.parametrize(("index", "xs"), [(0, [0, 1, 2]), (1, [0.5, 1.0, 2.0])])
def test_a_line_goes_through_the_geometric_means_within_the_band_of_the_seeds(
    drawn: list[Figure], index: int, xs: list[float]
) -> None:
    plots(FOUND)
    axes = drawn[index].axes[0]
    ours, other = axes.get_lines()
    assert list(ours.get_xdata()) == pytest.approx(xs)
    assert list(ours.get_ydata()) == pytest.approx([8.0, 4.0, 2.0])
    assert list(other.get_ydata()) == pytest.approx([8.0, 4.0, 3.0])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((1.0, 8.0))
    assert axes.get_yscale() == "log"
    assert axes.get_xscale() == ("linear", "log")[index]
    assert (axes.get_ylabel(), axes.get_xlabel()[:5]) == ("perplexity (test split)", ("round", "megab")[index])


def test_the_legend_names_each_method_outside_the_data(drawn: list[Figure]) -> None:
    plots(FOUND)
    for figure in drawn[:2]:
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["ours", r"costs \$5"]
        figure.draw_without_rendering()
        assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_methods_of_several_groups_are_named_with_their_group(drawn: list[Figure]) -> None:
    plots(report(a=method("ours", "mixture", [run(0, 1.0)]), b=method("ours", "mixture", [run(0, 2.0)], group="local")))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["ours (federated)", "ours (local)"]


def test_every_client_has_a_grey_dot_for_its_backbone_and_a_coloured_one(drawn: list[Figure]) -> None:
    rows = [client(0, 8.0, 2.0), client(1, 6.0, 3.0), client(2, 5.0, None), client(3, 4.0, math.inf)]
    plots(report(a=method("ours", "mixture", [run(0, 2.0, rows)]), b=method("other", "prompt", [run(0, 1.0)])))
    backbone, ours, _, other = drawn[2].axes[0].get_lines()
    assert (list(backbone.get_ydata()), list(ours.get_ydata())) == ([8.0, 6.0, 5.0, 4.0], [2.0, 3.0])
    assert max(backbone.get_xdata()) < min(ours.get_xdata())
    assert max(ours.get_xdata()) < 0.5 < min(other.get_xdata())
    assert [to_rgba(line.get_color()) for line in (backbone, ours, other)] == [
        to_rgba(colour) for colour in (GREY, COLOURS[0], COLOURS[1])
    ]
    assert [label.get_text() for label in drawn[2].axes[0].get_xticklabels()] == ["ours", "other"]


@pytest.mark.parametrize("last", [2.0, 900.0])
def test_marks_of_the_perplexity_do_not_overlap(drawn: list[Figure], last: float) -> None:
    rows = [client(0, 3.0, 1.5), client(1, 3.0, last)]
    plots(report(a=method("ours", "mixture", [run(0, 2.0, rows)])))
    axes = drawn[2].axes[0]
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    places = axes.transData.transform([(0.0, tick) for tick in shown])[:, 1] * 72 / drawn[2].dpi
    assert min(upper - lower for lower, upper in pairwise(places)) > 10.0  # points: the height of a figure


def test_more_methods_than_colours_differ_in_their_lines(drawn: list[Figure]) -> None:
    names = [f"m{index}" for index in range(len(COLOURS) + 1)]
    plots(report(**{name: method(name, "prompt", [run(0, 2.0)]) for name in names}))
    first, *_, last = drawn[0].axes[0].get_lines()
    assert (first.get_color(), first.get_linestyle()) == (last.get_color(), "-")
    assert last.get_linestyle() == "--"


def test_what_has_no_bounds_or_sent_nothing_has_no_place(drawn: list[Figure]) -> None:
    flat = run(0, 2.0)
    flat["rounds"][0]["bytes"], flat["rounds"][1]["perplexity"] = 0, math.inf
    plots(report(a=method("ours", "mixture", [flat])))
    assert list(drawn[0].axes[0].get_lines()[0].get_xdata()) == [0, 2]
    assert list(drawn[1].axes[0].get_lines()[0].get_xdata()) == [2.0]
