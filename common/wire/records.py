"""Records: how arrays, scores and plain values travel in a message, and how they are read without trust."""

import math
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.config import WireFormat
from common.measures import Measured, MeasureSum
from common.mixture_arrays import Arrays
from common.perplexity import AnswerScore
from common.wire.compressed import compress, restore
from common.wire.npy import array_of

NUMPY = "numpy.ndarray"  # Flower's word for an array in NumPy's format


def pack_arrays(arrays: Arrays, wire_format: WireFormat = "float32") -> ArrayRecord:
    """Turn named arrays into a record."""
    record = ArrayRecord()
    for name, array in compress(arrays, wire_format).items():
        record[name] = Array(array)  # ArrayRecord(dict) would make each twice
    return record


def unpack_arrays(record: ArrayRecord) -> Arrays:
    """Turn a record into named arrays, whatever they travelled as: the server checks updates before it merges them."""
    return restore({name: read_array(name, array) for name, array in record.items()})


def pack_scores(scores: dict[str, AnswerScore]) -> RecordDict:
    """Build a record of a score per task."""
    tasks = list(scores)
    metrics = MetricRecord(
        {
            "nll": [scores[task].nll for task in tasks],
            "num-tokens": [scores[task].num_tokens for task in tasks],
            "num-characters": [scores[task].num_characters for task in tasks],
            "num-examples": [scores[task].num_examples for task in tasks],
        }
    )
    return RecordDict({"tasks": ConfigRecord({"names": tasks}), "scores": metrics})


def unpack_scores(content: RecordDict) -> dict[str, AnswerScore]:
    """Read scores per task. Raises KeyError, TypeError or ValueError for malformed ones."""
    metrics = content.metric_records["scores"]
    names = read_texts(content.config_records["tasks"]["names"])
    columns = [read_counts(metrics[key]) for key in ("num-tokens", "num-characters", "num-examples")]
    scores = {
        name: AnswerScore(float(nll), tokens, characters, examples)
        for name, nll, tokens, characters, examples in zip(names, read_numbers(metrics["nll"]), *columns, strict=True)
    }
    if not scores:
        raise ValueError("there are no scores")
    for name, score in scores.items():
        if not 0 <= score.nll < math.inf or min(score.num_tokens, score.num_characters, score.num_examples) < 1:
            raise ValueError(f"the score of task {name!r} is {score}")
    return scores


def pack_measured(measured: Measured) -> RecordDict:
    """Build a record of each task's sums and counts, a row for each measure; without measures nothing is sent."""
    rows = [(task, name, each) for task, measures in measured.items() for name, each in measures.items()]
    if not rows:
        return RecordDict()
    tasks, names, sums = zip(*rows, strict=True)
    metrics = MetricRecord({"sums": [each.sum for each in sums], "counts": [each.count for each in sums]})
    return RecordDict({"measured": ConfigRecord({"tasks": list(tasks), "names": list(names)}), "measures": metrics})


def unpack_measured(content: RecordDict) -> dict[str, dict[str, MeasureSum]]:
    """Read sums and counts per task. Raises KeyError, TypeError or ValueError for malformed ones."""
    measured: dict[str, dict[str, MeasureSum]] = {}
    if "measures" not in content and "measured" not in content:
        return measured
    about, metrics = content.config_records["measured"], content.metric_records["measures"]
    columns = read_texts(about["tasks"]), read_texts(about["names"])
    for task, name, value, count in zip(
        *columns, read_numbers(metrics["sums"]), read_counts(metrics["counts"]), strict=True
    ):
        of_task = measured.setdefault(task, {})
        if name in of_task or not 0 <= value <= count or count < 1:
            raise ValueError(f"measure {name!r} of task {task!r} is {value} over {count} examples, or comes twice")
        of_task[name] = MeasureSum(float(value), count)
    return measured


def read_array(name: str, array: Array) -> NDArray[Any]:
    """Read an array. Raises ValueError, naming it, for bytes that are none."""
    try:
        return array_of(array.data) if array.stype == NUMPY else array.numpy()
    except Exception as error:  # bytes that are no array make numpy raise EOFError, MemoryError, OverflowError and more
        raise ValueError(f"array {name} cannot be read: {error}") from error


def read_count(value: object) -> int:
    """Return a whole number. Raises TypeError for anything else, as all below."""
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def read_counts(values: object) -> list[int]:
    """Return a list of whole numbers."""
    if not isinstance(values, list):
        raise TypeError(f"expected a list of whole numbers, got {values!r}")
    return [read_count(value) for value in values]


def read_flag(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def read_number(value: object) -> float:
    """Return a number."""
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value


def read_numbers(values: object) -> list[float]:
    """Return a list of numbers."""
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {values!r}")
    return [read_number(value) for value in values]


def read_texts(values: object) -> list[str]:
    """Return a list of texts."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of texts, got {values!r}")
    return values
