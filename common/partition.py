"""Who owns which examples. A partition is what one client owns: its training and its evaluation examples."""

import random
import warnings
from collections.abc import Sequence
from functools import lru_cache

import datasets

from common.config import OWN_PARTITION, Config
from common.data.bad_row import BadRowError
from common.data.load import Reading, read_data
from common.example import Example
from common.partitioner import partitioner_for

# What gives every client more examples, by the value of the key `partition`.
MENDS = {
    "dirichlet": "a larger dirichlet-alpha",
    "pathological": "a larger tasks-per-client",
    "shard": "a larger shards-per-client",
}


@lru_cache(maxsize=8)  # clients of a simulation that differ have a configuration each
def partitions_of(config: Config) -> tuple[tuple[Example, ...], ...]:
    """Load a run's examples and partition them over its clients.

    Raises ValueError for data that cannot be read, and when a client would own no example to train on or none to
    evaluate on.
    """
    examples = reading_of(config).examples
    if config.partition == OWN_PARTITION:
        _check_splits(examples, config, "the data")
        return (examples,) * config.num_clients
    num_training = sum(example.split == "train" for example in examples)
    if config.num_clients > num_training:
        raise ValueError(
            f"num-clients is {config.num_clients}, but there are only {num_training} training examples: "
            "ask for fewer clients or raise train-examples"
        )
    partitions = partition(examples, config)
    for client, owned in enumerate(partitions):
        _check_splits(owned, config, f"client {client} of {config.num_clients}")
    return partitions


@lru_cache(maxsize=8)
def reading_of(config: Config) -> Reading:
    """Load a run's examples, with what became of the other rows. Raises ValueError for data that cannot be read."""
    try:
        return read_data(
            config.data,
            config.train_examples,
            config.eval_examples,
            config.eval_split,
            config.seed,
            config.tasks,
            config.columns,
            config.skip_bad_rows,
        )
    except BadRowError as error:
        raise ValueError(f"{error} (skip-bad-rows=true leaves such rows out)") from None


def _check_splits(owned: Sequence[Example], config: Config, who: str) -> None:
    for split in ("train", config.eval_split):
        if not any(example.split == split for example in owned):
            mend = f"{MENDS[config.partition]} " if config.partition in MENDS else ""
            fewer = "" if config.partition == OWN_PARTITION else f"ask for fewer clients, {mend}or "
            raise ValueError(f"{who} owns no {split} examples: {fewer}give data with more of that split")


def partition(examples: Sequence[Example], config: Config) -> tuple[tuple[Example, ...], ...]:
    """Deal examples out to clients as the key `partition` says; no example has two owners.

    A pathological draw may leave a task without an owner, and shards of equal size some examples. Raises ValueError for
    what cannot be dealt out so.
    """
    shuffled = list(examples)
    random.Random(f"{config.seed}/partition").shuffle(shuffled)
    partitioner = partitioner_for(shuffled, config)
    partitioner.dataset = datasets.Dataset.from_dict(
        {
            "index": list(range(len(shuffled))),
            "task": [example.task for example in shuffled],
            "source": [example.source for example in shuffled],
        }
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Dirichlet warns at every attempt; the error says it once
            parts = [partitioner.load_partition(client)["index"] for client in range(config.num_clients)]
    except ValueError as error:
        expected = f": {MENDS[config.partition]} gives more" if config.partition in MENDS else ""
        raise ValueError(
            f"partition={config.partition} leaves some of {config.num_clients} clients without examples{expected} "
            f"({error})"
        ) from None
    return tuple(tuple(shuffled[index] for index in part) for part in parts)
