"""The picture of a run: every client's perplexity by round. Imports matplotlib: import it where a plot is due."""

import math
from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.perplexity import geometric_mean
from simulations.perplexity_png import perplexity_png

MOST_NAMED = 12  # clients in the legend


def draw_clients(curves: Mapping[int, Mapping[int, float]], split: str) -> bytes:
    """Return a PNG of perplexities by client and round, that of the backbone alone in round 0, and of their mean."""
    return perplexity_png(clients_figure(curves), split)


def clients_figure(curves: Mapping[int, Mapping[int, float]]) -> Figure:
    """Return the figure: a line for each client, with gaps where it was not scored, and one for their mean."""
    figure = Figure(figsize=(8.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    finite = {
        client: {server_round: value for server_round, value in values.items() if math.isfinite(value)}
        for client, values in curves.items()
    }
    few = len(finite) <= MOST_NAMED
    for client, values in finite.items():
        through = range(min(values, default=0), max(values, default=-1) + 1)
        drawn = [values.get(server_round, math.nan) for server_round in through]
        label = f"client {client}" if few else "_"  # matplotlib leaves labels that begin so out of the legend
        axes.plot(through, drawn, marker=".", linewidth=1.2, alpha=1.0 if few else 0.5, label=label)
    rounds = sorted({server_round for values in finite.values() for server_round in values})
    means = [geometric_mean(values[each] for values in finite.values() if each in values) for each in rounds]
    axes.plot(rounds, means, color="black", linewidth=2.2, label="geometric mean\nof those scored")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round (0: the backbone alone)")
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure
