"""A figure over perplexity as a PNG: a logarithmic axis whose marks are plain numbers. Imports matplotlib."""

import io

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Marks within a power of ten: of perplexities close together, and of those that span more than WIDE.
STEPS, FEW_STEPS, WIDE = (1, 1.2, 1.5, 2, 3, 5, 7), (1, 2, 5), 20.0


def perplexity_png(figure: Figure, split: str) -> bytes:
    """Return a figure of one panel, whose heights are perplexities of a split, as a PNG."""
    axes = figure.axes[0]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=FEW_STEPS if high / low > WIDE else STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"perplexity ({split} split)")
    axes.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
