"""The plots of a comparison. Imports matplotlib: import it where a plot is due."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from common.perplexity import geometric_mean
from simulations.perplexity_png import perplexity_png

# Dark enough on white, and told apart by the colour-blind (Okabe and Ito; Tol); lines repeat them in other styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#332288", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
GREY = "#9A9A9A"
MAX_SHIFT = 0.16

Row = dict[str, Any]


def plots(report: Row) -> dict[str, bytes]:
    """Return a PNG by file name: perplexity by rounds, by bytes, and of every client. None while there is no result."""
    methods = [method for method in report["methods"].values() if method["runs"]]
    if not methods:
        return {}
    by_rounds, by_bytes = _figure(9.0), _figure(9.0)
    for name, method, look in _looks(methods):
        _draw_rounds(by_rounds.axes[0], name, method, look)
        _draw_bytes(by_bytes.axes[0], name, method, look)
    by_rounds.axes[0].set_xlabel("round")
    by_rounds.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    by_bytes.axes[0].set_xscale("log")
    by_bytes.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    by_bytes.axes[0].set_xlabel("megabytes sent, down and up, of all clients")
    for figure in (by_rounds, by_bytes):
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figures = {"rounds.png": by_rounds, "bytes.png": by_bytes, "clients.png": _clients(methods)}
    return {name: perplexity_png(figure, report["split"]) for name, figure in figures.items()}


def _looks(methods: Sequence[Row]) -> Iterator[tuple[str, Row, Row]]:
    """Yield each method with its name and its colour and style, the same in all plots."""
    several_groups = len({method["group"] for method in methods}) > 1
    for index, method in enumerate(methods):
        name = f"{method['label']} ({method['group']})" if several_groups else method["label"]
        look = {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
        yield name.replace("$", r"\$"), method, look


def _figure(width: float) -> Figure:
    figure = Figure(figsize=(width, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.add_subplot()
    return figure


def _draw_rounds(axes: Axes, name: str, method: Row, look: Row) -> None:
    values: dict[int, list[float]] = {}
    for run in method["runs"]:
        for line in run["rounds"]:
            if math.isfinite(line["perplexity"]):
                values.setdefault(line["round"], []).append(line["perplexity"])
    _draw(axes, name, list(values), list(values.values()), look)


def _draw_bytes(axes: Axes, name: str, method: Row, look: Row) -> None:
    """Draw over the mean of the bytes; a round that sent nothing so far has no place on a logarithmic axis."""
    values: dict[int, list[tuple[float, float]]] = {}
    for run in method["runs"]:
        for line in run["rounds"]:
            if math.isfinite(line["perplexity"]) and line["bytes"] > 0:
                values.setdefault(line["round"], []).append((line["bytes"] / 1e6, line["perplexity"]))
    megabytes = [geometric_mean(sent for sent, _ in pairs) for pairs in values.values()]
    _draw(axes, name, megabytes, [[value for _, value in pairs] for pairs in values.values()], look)


def _draw(axes: Axes, name: str, xs: Sequence[float], values: Sequence[Sequence[float]], look: Row) -> None:
    axes.plot(xs, [geometric_mean(each) for each in values], label=name, marker=".", linewidth=1.6, **look)
    lowest, highest = [min(each) for each in values], [max(each) for each in values]
    axes.fill_between(xs, lowest, highest, color=look["color"], alpha=0.15, linewidth=0)


def _clients(methods: Sequence[Row]) -> Figure:
    figure = _figure(max(6.0, 3.0 + 0.9 * len(methods)))
    axes = figure.axes[0]
    names = []
    for place, (name, method, look) in enumerate(_looks(methods)):
        names.append(name)
        rows = [row for run in method["runs"] for row in run["clients"]]
        grey = "_" if place else "backbone alone"  # matplotlib leaves labels that begin so out of the legend
        backbone = _dots(place - 0.2, rows, "backbone_perplexity")
        axes.plot(*backbone, "o", color=GREY, alpha=0.6, markersize=3.5, label=grey)
        axes.plot(*_dots(place + 0.2, rows, "perplexity"), "o", color=look["color"], alpha=0.6, markersize=3.5)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", fontsize="small")
    axes.set_xlim(-0.6, len(names) - 0.4)
    figure.legend(loc="outside upper right", frameon=False, fontsize="small")
    return figure


def _dots(place: float, rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Spread the values around a place so that equal ones show."""
    values = [row[key] for row in rows if math.isfinite(row.get(key, math.inf))]
    # Multiples of the golden ratio fill the width evenly.
    shifts = [(index * 0.618034 % 1 - 0.5) * 2 * MAX_SHIFT for index in range(len(values))]
    return [place + shift for shift in shifts], values
