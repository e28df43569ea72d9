"""The plot of a sweep. Imports matplotlib: import it where a plot is due."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from common.config import Value
from common.perplexity import geometric_mean
from simulations.grid import shown

LOG_SPAN = 20
MAX_TICKS = 12
LONGEST_LEVEL_LABEL = 16  # characters; longer ones would run into each other

Measured = Sequence[tuple[Sequence[Value], float]]  # the values of the swept keys, and a perplexity


def draw(keys: Sequence[str], measured: Measured, label: str) -> bytes:
    """Return a PNG: a dot for each measurement over the first key, a line through the means for each of the second.

    Needs one or two keys and one measurement at least.
    """
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = _places([values[0] for values, _ in measured])
    for line in dict.fromkeys(tuple(values[1:]) for values, _ in measured):
        dots = [(places[values[0]], y) for values, y in measured if tuple(values[1:]) == line]
        means = {x: geometric_mean(y for other, y in dots if other == x) for x in sorted({x for x, _ in dots})}
        (drawn,) = axes.plot(list(means), list(means.values()), label=_plain(shown(line[0])) if line else None)
        axes.plot(*zip(*dots, strict=True), "o", color=drawn.get_color(), alpha=0.5, markersize=5)
    _scale_x(axes, places)
    if _wants_log([y for _, y in measured]):
        axes.set_yscale("log")
    axes.set_xlabel(keys[0])
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if len(keys) > 1:
        axes.legend(title=keys[1])
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(values: Sequence[Value]) -> dict[Value, float]:
    """Return where each value stands on the axis: numbers where they are, all else side by side as it came."""
    if all(_is_number(value) for value in values):
        return {value: float(value) for value in values}
    return {value: float(place) for place, value in enumerate(dict.fromkeys(values))}


def _wants_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > LOG_SPAN * min(values)


def _scale_x(axes: Axes, places: dict[Value, float]) -> None:
    """Scale the axis and put the ticks at the values that were swept."""
    categories = not all(_is_number(value) for value in places)
    if not categories and _wants_log(list(places.values())):
        axes.set_xscale("log")
    if categories or len(places) <= MAX_TICKS:
        labels = [_plain(shown(value)) for value in places]
        axes.set_xticks(list(places.values()), labels)
        if categories and max(map(len, labels)) > LONGEST_LEVEL_LABEL:
            axes.tick_params(axis="x", labelrotation=20)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.xaxis.set_minor_locator(NullLocator())


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollars as formulas."""
    return text.replace("$", r"\$")
