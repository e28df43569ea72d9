"""The key `tasks`: which tasks of the data a run has."""

import random
from collections.abc import Sequence

from common.near_names import did_you_mean

ALL_TASKS = "all"


def choose_tasks(wanted: str, known: Sequence[str], seed: int) -> set[str]:
    """Read the key `tasks`: all, a number of tasks, of which a larger one holds the smaller one's, or names."""
    if wanted == ALL_TASKS:
        return set(known)
    if wanted.strip().isdecimal():
        if not 1 <= int(wanted) <= len(known):
            raise ValueError(f"tasks must be a number from 1 to {len(known)}, the tasks of the data, got {wanted}")
        return set(random.Random(f"{seed}/tasks").sample(known, len(known))[: int(wanted)])
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"expected some of {', '.join(known)}")
            raise ValueError(f"tasks: the data has no task {name!r}: {hint}")
    return set(names)
