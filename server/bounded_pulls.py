"""A limit to how long Flower's grid waits for a reply whose sender died while it sent it.

Every reply is announced before its objects are there. Flower 1.41 waits three minutes for them, within one pull, which
holds up all other replies and every deadline, and has no setting for it. It asks for them again after 1, 2, 4 s: most
are there a tenth of a second after their reply was announced, so that a round without work took some seconds longer.
"""

import sys
from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_objects

# A mixture of a megabyte or two takes longer than that only on less than a megabit a second.
PULL_SECONDS = 20.0
PAUSES_SECONDS = 0.1, 1.0  # between questions: the first, and the longest, as they double
GRID = "flwr.superlink.grid.http_grid"


def bound_pulls(seconds: float = PULL_SECONDS) -> None:
    """Have replies that are not there after so long be errors by name. Without effect where that grid is not in use."""
    grid = sys.modules.get(GRID)
    if grid is not None:
        first, longest = PAUSES_SECONDS
        grid.pull_objects = partial(  # type: ignore[attr-defined]
            pull_objects, max_time=seconds, initial_backoff=first, backoff_cap=longest
        )
