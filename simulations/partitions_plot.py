"""The picture of a partition. Imports matplotlib: import it where a picture is due."""

import io
from collections import Counter
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_NAMED_TASKS = 60
INCHES_OF_A_CELL = 0.28


def draw(training: Sequence[Counter[str]]) -> bytes:
    """Return a PNG: a dot for each client (across) and task (down), its area in proportion to the examples."""
    tasks = sorted(set().union(*training))
    width = 2.5 + INCHES_OF_A_CELL * min(max(len(training), 8), 60)
    height = 1.5 + INCHES_OF_A_CELL * min(max(len(tasks), 6), MAX_NAMED_TASKS)
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = {task: place for place, task in enumerate(tasks)}
    most = max(max(own.values()) for own in training)
    for client, own in enumerate(training):
        rows = [places[task] for task in own]
        axes.scatter(
            [client] * len(rows), rows, s=[160 * count / most for count in own.values()], color="#0072B2", linewidths=0
        )
    axes.set_xlabel("client")
    axes.set_xlim(-0.7, len(training) - 0.3)
    axes.set_ylim(len(tasks) - 0.3, -0.7)
    if len(training) <= 60:
        axes.set_xticks(range(len(training)))
    if len(tasks) <= MAX_NAMED_TASKS:
        axes.set_yticks(range(len(tasks)), [task.replace("$", r"\$") for task in tasks], fontsize="small")
    else:
        axes.set_ylabel(f"{len(tasks)} tasks")
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.set_title(f"training examples; the largest dot is {most}", fontsize="medium")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
