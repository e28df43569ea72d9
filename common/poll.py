"""Waiting for a thing, at most so long."""

import time
from collections.abc import Callable


def poll(condition: Callable[[], bool], limit_seconds: float) -> bool:
    """Wait until the condition holds, at most `limit_seconds`; return whether it does."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
