"""Who owns which examples. A partition is what one client owns: its training and its evaluation examples."""

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import datasets
from flwr_datasets.partitioner import DirichletPartitioner, Partitioner

from common.config import Config
from common.data import load_examples
from common.example import Example

# A task is held by clients of each of so many groups; a group sees the task in its own style.
NUM_GROUPS = 2


@lru_cache(maxsize=1)
def partitions_of(config: Config) -> tuple[tuple[Example, ...], ...]:
    """Load a run's examples and partition them over its clients.

    Raises ValueError when a client would own no example to train on or none to evaluate on.
    """
    examples = load_examples(
        config.data, config.train_examples, config.eval_examples, config.eval_split, config.seed, config.tasks
    )
    num_training = sum(example.split == "train" for example in examples)
    if config.num_clients > num_training:
        raise ValueError(
            f"num-clients is {config.num_clients}, but there are only {num_training} training examples: "
            "ask for fewer clients or raise train-examples"
        )
    partitions = partition(examples, config.partition, config.num_clients, config.dirichlet_alpha, config.seed)
    for client, owned in enumerate(partitions):
        for split in ("train", config.eval_split):
            if not any(example.split == split for example in owned):
                raise ValueError(
                    f"client {client} of {config.num_clients} owns no {split} examples: ask for fewer clients, "
                    "a larger dirichlet-alpha or data with more of that split"
                )
    return partitions


def partition(
    examples: Sequence[Example], method: str, num_clients: int, alpha: float, seed: int
) -> tuple[tuple[Example, ...], ...]:
    """Deal examples out to clients, by task or by Dirichlet(alpha) over the tasks; every example has one owner."""
    shuffled = list(examples)
    random.Random(f"{seed}/partition").shuffle(shuffled)
    partitioner: Partitioner
    if method == "dirichlet":
        partitioner = DirichletPartitioner(
            num_partitions=num_clients, partition_by="task", alpha=alpha, min_partition_size=1, seed=seed
        )
    else:
        partitioner = OwnerPartitioner(_owners_by_task(shuffled, num_clients, seed), num_clients)
    rows = {"index": list(range(len(shuffled))), "task": [example.task for example in shuffled]}
    partitioner.dataset = datasets.Dataset.from_dict(rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Dirichlet warns at every attempt; the error says it once
            parts = [partitioner.load_partition(client)["index"] for client in range(num_clients)]
    except ValueError as error:
        raise ValueError(
            f"dirichlet-alpha {alpha} leaves some of {num_clients} clients without examples: raise it ({error})"
        ) from None
    return tuple(tuple(shuffled[index] for index in part) for part in parts)


class OwnerPartitioner(Partitioner):  # type: ignore[misc]
    """A partitioner of flwr-datasets that is told the owner of every row."""

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
