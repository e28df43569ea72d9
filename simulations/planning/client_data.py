"""What a plan needs to know of a client's data: its tasks, and how long its texts get."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from client.evaluator import EVALUATION_BATCH_SIZE
from client.partition_data import load_partition_data
from common.backbone import Backbone
from common.config import Config
from common.data_counts import DataCounts
from simulations.planning.weightless import weightless


@dataclass(frozen=True)
class Texts:
    """The longest of a client's texts, answer included, and of its answers (tokens); how many a batch has."""

    longest: int
    longest_answer: int
    num_trained: int
    num_evaluated: int


@dataclass(frozen=True)
class ClientData:
    """A client's tasks in training and in the evaluation, its texts, and what was cut of them."""

    trained: Sequence[str]
    evaluated: Sequence[str]
    texts: Texts
    counts: DataCounts


def read_client(config: Config, number: int) -> ClientData:
    """Read and tokenize a client's data as a run does. Raises ValueError as the run would."""
    backbone = _without_weights(config.backbone)
    lengths_alone = replace(config, gate_encoder="", prefix_cache_gib=0.0)
    data = load_partition_data(lengths_alone, number, backbone)
    texts = [*data.train.tokenized, *data.evaluation.tokenized]
    return ClientData(
        sorted({example.task for example in data.train.examples}),
        sorted({example.task for example in data.evaluation.examples}),
        Texts(
            longest=max(text.num_tokens for text in texts),
            longest_answer=max(len(text.answer_ids) for text in texts),
            num_trained=config.batch_size,
            num_evaluated=min(EVALUATION_BATCH_SIZE, len(data.evaluation.tokenized)),
        ),
        DataCounts(data.train.counts, data.evaluation.counts),
    )


def longest(texts: Iterable[Texts]) -> Texts:
    """Return what bounds the batches of several clients: the longest text and answer may meet in one."""
    rows = [(each.longest, each.longest_answer, each.num_trained, each.num_evaluated) for each in texts]
    return Texts(*map(max, zip(*rows, strict=True)))


@lru_cache(maxsize=8)
def _without_weights(name: str) -> Backbone:
    with weightless(name, "none", "cpu", "auto") as backbone:
        return backbone
