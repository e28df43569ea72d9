"""A limit to how long Flower's grid waits for a reply whose sender died while it sent it.

Such a reply is announced before its objects are there. Flower 1.41 waits three minutes for them, within one pull, which
holds up all other replies and every deadline, and has no setting for it.
"""

import sys
from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_objects

# A mixture of a megabyte or two takes longer than that only on less than a megabit a second.
PULL_SECONDS = 20.0
GRID = "flwr.superlink.grid.http_grid"


def bound_pulls(seconds: float = PULL_SECONDS) -> None:
    """Have replies that are not there after so long be errors by name. Without effect where that grid is not in use."""
    grid = sys.modules.get(GRID)
    if grid is not None:
        grid.pull_objects = partial(pull_objects, max_time=seconds)  # type: ignore[attr-defined]
