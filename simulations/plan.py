"""`fedmops plan`: memory and traffic of a run, before any weight is loaded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from common.config import Config, read_config
from common.data_counts import over_all_clients
from common.own_settings import own_config
from simulations.plan_table import Kind, Plan, show
from simulations.settings import resolve


@dataclass(frozen=True)
class Lengths:
    """The longest text, answer included, and the longest answer (tokens), where those of the data are not meant."""

    text: int
    answer: int


def read_lengths(words: str | None) -> Lengths | None:
    """Read TEXT+ANSWER. Raises ValueError for anything else, and where the answer leaves no room for a prompt."""
    if words is None:
        return None
    text, _, answer = words.partition("+")
    if not (text.isdecimal() and answer.isdecimal()) or not 0 < int(answer) < int(text):
        raise ValueError(
            f"--lengths must be TEXT+ANSWER (tokens), such as 512+64, with ANSWER below TEXT, got {words!r}"
        )
    return Lengths(int(text), int(answer))


def plan(words: Sequence[str], lengths: Lengths | None, gpu_gib: float | None, console: Console) -> None:
    """Print what a run would need: parameters, bytes of its messages, memory of each kind of client.

    Texts are as long as those of the data, unless `lengths` says otherwise. Raises ValueError for bad input.
    """
    settings = resolve(words)
    config = read_config(settings)
    numbers = range(config.num_clients)
    own = [own_config(settings, {"partition-id": number, "num-partitions": config.num_clients}) for number in numbers]
    with console.status("loading torch") as status, _quiet_log():
        from simulations.planning.client_data import ClientData, longest, read_client
        from simulations.planning.memory import plan_memory
        from simulations.planning.shape import shape_of
        from simulations.planning.traffic import plan_traffic

        data: list[ClientData] = []
        for number in numbers:
            status.update(f"reading the data of client {number + 1} of {len(numbers)}")
            data.append(read_client(own[number], number))
        tasks = sorted({task for client in data for task in client.trained})
        status.update("shaping the backbone")
        shape = shape_of(config, tasks)
        kinds = []
        for key in dict.fromkeys(map(_kind, own)):
            status.update(f"planning a step: {key[1]}, {config.batch_size} texts")
            members = [number for number in numbers if _kind(own[number]) == key]
            texts = longest(data[number].texts for number in members)
            if lengths is not None:
                texts = replace(texts, longest=lengths.text, longest_answer=lengths.answer)
            kinds.append(Kind(members, own[members[0]], texts, plan_memory(own[members[0]], texts, tasks)))
        counts = over_all_clients([client.counts for client in data])
        show(Plan(config, shape, plan_traffic(config, shape, data), kinds, counts), gpu_gib, console)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep warnings of what is cut from the log: it is said once, for all clients."""
    log = logging.getLogger("flwr.fedmops")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _kind(config: Config) -> tuple[Any, ...]:
    """Return what a client's memory depends on, but for its texts."""
    return (
        config.backbone,
        config.quantization,
        config.compute_dtype,
        config.device,
        config.batch_size,
        config.pass_tokens,
    )
