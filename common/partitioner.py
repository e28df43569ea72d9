"""The partitioners: flwr-datasets' own, and one that is told the owner of every row."""

import random
from collections import defaultdict
from collections.abc import Sequence

import datasets
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
)

from common.config import Config
from common.example import Example

# A task is held by clients of each of so many groups; a group sees the task in its own style.
NUM_GROUPS = 2


def partitioner_for(examples: Sequence[Example], config: Config) -> Partitioner:
    """Return what deals out rows with the columns `task` and `source`, as the key `partition` says.

    Raises ValueError for what cannot be dealt out so.
    """
    method, num_clients, seed = config.partition, config.num_clients, config.seed
    if method == "iid":
        return IidPartitioner(num_clients)
    if method == "dirichlet":
        return DirichletPartitioner(num_clients, "task", config.dirichlet_alpha, min_partition_size=1, seed=seed)
    if method == "pathological":
        num_tasks = len({example.task for example in examples})
        if config.tasks_per_client > num_tasks:
            raise ValueError(
                f"tasks-per-client must be at most {num_tasks}, the tasks of the data, got {config.tasks_per_client}"
            )
        # As in the paper that flwr-datasets follows (arXiv 2102.02079): the first task in turn, the others drawn.
        return PathologicalPartitioner(num_clients, "task", config.tasks_per_client, "first-deterministic", seed=seed)
    if method == "shard":
        return ShardPartitioner(num_clients, "task", num_shards_per_partition=config.shards_per_client, seed=seed)
    if method == "by-source":
        sources = sorted({example.source for example in examples})
        if len(sources) != num_clients:
            raise ValueError(
                f"num-clients must be {len(sources)} with partition=by-source, the number of sources of the data "
                f"({_some(sources)}), got {num_clients}"
            )
        return NaturalIdPartitioner("source")
    return OwnerPartitioner(_owners_by_task(examples, num_clients, seed), num_clients)


class OwnerPartitioner(Partitioner):  # type: ignore[misc]
    """A partitioner that is told the owner of every row."""

    def __init__(self, owners: Sequence[int], num_partitions: int) -> None:
        super().__init__()
        self._rows: list[list[int]] = [[] for _ in range(num_partitions)]
        for row, owner in enumerate(owners):
            self._rows[owner].append(row)

    @property
    def num_partitions(self) -> int:
        """Number of owners, those without rows included."""
        return len(self._rows)

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        """Return the rows of one owner."""
        return self.dataset.select(self._rows[partition_id])


def _owners_by_task(examples: Sequence[Example], num_clients: int, seed: int) -> list[int]:
    """Choose each example's owner so that clients differ in tasks and sources.

    Clients fall into two groups. A group sees every task, each in half of its sources (half of its examples where
    there is one source), and deals the tasks out to its clients; so two clients at least hold a task.
    """
    tasks = sorted({example.task for example in examples})
    sources = sorted({example.source for example in examples})
    num_groups = min(NUM_GROUPS, num_clients)
    holders: dict[tuple[int, str], list[int]] = defaultdict(list)
    for group in range(num_groups):
        clients = range(group, num_clients, num_groups)
        dealt = random.Random(f"{seed}/tasks/{group}").sample(tasks, len(tasks))
        for turn in range(max(len(clients), len(tasks))):
            holders[group, dealt[turn % len(tasks)]].append(clients[turn % len(clients)])
    taken: dict[tuple[str, str], int] = defaultdict(int)
    owners = []
    for example in examples:
        count = taken[example.task, example.source + example.split]
        taken[example.task, example.source + example.split] += 1
        if len(sources) > 1:
            group = sources.index(example.source) % num_groups
        else:
            group, count = count % num_groups, count // num_groups
        owned_by = holders[group, example.task]
        owners.append(owned_by[count % len(owned_by)])
    return owners


def _some(names: Sequence[str], most: int = 5) -> str:
    told = ", ".join(repr(name) for name in names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"
