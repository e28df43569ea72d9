"""The wire: what is in the messages between server and client. Nothing else travels."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from numpy.typing import NDArray

from common.mixture_arrays import Arrays
from common.perplexity import AnswerScore

# The two exchanges before round 1; Flower names the others "train" and "evaluate".
PREPARE, MOMENTS = "prepare", "moments"


@dataclass(frozen=True)
class TrainReply:
    """A client's update. `usage` is the gate mass `[experts]` that its examples gave each expert."""

    arrays: Arrays
    loss: float
    num_examples: int
    usage: NDArray[np.float64]
    gate_entropy: float


@dataclass(frozen=True)
class PrepareReply:
    """What a client tells once: its backbone, and sums of the gate's input over its training examples by task.

    `sums` and `squares` are `[tasks, hidden]`, `counts` is `[tasks]`. `kv_shapes` maps layers to (key/value heads, key
    size, value size).
    """

    partition: int
    fingerprint: str
    hidden_size: int
    kv_shapes: dict[int, tuple[int, int, int]]
    tasks: list[str]
    domains: list[str]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    scores: dict[str, AnswerScore]


def pack_arrays(arrays: Arrays) -> ArrayRecord:
    """Turn named arrays into a record."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> Arrays:
    """Turn a record into named arrays, of whatever dtype they have: the server checks updates before it merges them."""
    return {name: _read_array(name, array) for name, array in record.items()}


def message_bytes(content: InflatableObject) -> int:
    """Count the bytes of a message's content as Flower ships it: records and arrays, each with a header."""
    return len(content.deflate()) + sum(message_bytes(child) for child in (content.children or {}).values())


def instruction(server_round: int, arrays: Arrays | None = None) -> RecordDict:
    """Build what the server sends: the round, and the mixture."""
    content = RecordDict({"config": ConfigRecord({"server-round": server_round})})
    if arrays is not None:
        content["arrays"] = pack_arrays(arrays)
    return content


def read_instruction(content: RecordDict) -> tuple[int, Arrays]:
    """Read the round and the mixture that the server sent."""
    server_round = content.config_records["config"]["server-round"]
    assert isinstance(server_round, int)
    return server_round, unpack_arrays(content.array_records["arrays"])


def pack_train_reply(reply: TrainReply) -> RecordDict:
    """Build the reply to a train message."""
    metrics = MetricRecord(
        {
            "loss": reply.loss,
            "num-examples": reply.num_examples,
            "usage": reply.usage.tolist(),
            "gate-entropy": reply.gate_entropy,
        }
    )
    return RecordDict({"arrays": pack_arrays(reply.arrays), "metrics": metrics})


def unpack_train_reply(content: RecordDict) -> TrainReply:
    """Read the reply to a train message. Raises KeyError, TypeError or ValueError for a malformed one."""
    metrics = content.metric_records["metrics"]
    return TrainReply(
        unpack_arrays(content.array_records["arrays"]),
        float(_number(metrics["loss"])),
        _count(metrics["num-examples"]),
        np.asarray(metrics["usage"], dtype=np.float64),
        float(_number(metrics["gate-entropy"])),
    )


def pack_scores(scores: dict[str, AnswerScore]) -> RecordDict:
    """Build the reply to an evaluate message: a score per task."""
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
    names = _texts(content.config_records["tasks"]["names"])
    columns = [_counts(metrics[key]) for key in ("num-tokens", "num-characters", "num-examples")]
    scores = {
        name: AnswerScore(float(nll), tokens, characters, examples)
        for name, nll, tokens, characters, examples in zip(names, _numbers(metrics["nll"]), *columns, strict=True)
    }
    if not scores:
        raise ValueError("there are no scores")
    for name, score in scores.items():
        if not 0 <= score.nll < math.inf or min(score.num_tokens, score.num_characters, score.num_examples) < 1:
            raise ValueError(f"the score of task {name!r} is {score}")
    return scores


def pack_prepare_reply(reply: PrepareReply) -> RecordDict:
    """Build the reply to the first exchange."""
    content = pack_scores(reply.scores)
    layers = sorted(reply.kv_shapes)
    content["about"] = ConfigRecord(
        {
            "partition": reply.partition,
            "fingerprint": reply.fingerprint,
            "hidden-size": reply.hidden_size,
            "layers": layers,
            "kv-shapes": [size for layer in layers for size in reply.kv_shapes[layer]],
            "tasks": reply.tasks,
            "domains": reply.domains,
        }
    )
    content["statistics"] = ArrayRecord(
        {"counts": Array(reply.counts), "sums": Array(reply.sums), "squares": Array(reply.squares)}
    )
    return content


def unpack_prepare_reply(content: RecordDict) -> PrepareReply:
    """Read the reply to the first exchange. Raises KeyError, TypeError or ValueError for a malformed one."""
    about = content.config_records["about"]
    statistics = content.array_records["statistics"]
    layers, sizes = _counts(about["layers"]), _counts(about["kv-shapes"])
    return PrepareReply(
        partition=_count(about["partition"]),
        fingerprint=str(about["fingerprint"]),
        hidden_size=_count(about["hidden-size"]),
        kv_shapes=dict(zip(layers, zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True), strict=True)),
        tasks=_texts(about["tasks"]),
        domains=_texts(about["domains"]),
        counts=_read_array("counts", statistics["counts"]),
        sums=_read_array("sums", statistics["sums"]),
        squares=_read_array("squares", statistics["squares"]),
        scores=unpack_scores(content),
    )


def pack_moments(moments: NDArray[np.float32]) -> RecordDict:
    """Build the reply to the second exchange: second moments `[features, features]` of the gate's input."""
    return RecordDict({"statistics": pack_arrays({"moments": moments})})


def unpack_moments(content: RecordDict) -> NDArray[np.float64]:
    """Read second moments. Raises KeyError or ValueError for malformed ones."""
    moments = _read_array("moments", content.array_records["statistics"]["moments"]).astype(np.float64)
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1] or not np.isfinite(moments).all():
        raise ValueError(f"the moments are not a finite square matrix, but {list(moments.shape)}")
    return moments


def _read_array(name: str, array: Array) -> NDArray[Any]:
    try:
        return array.numpy()
    except Exception as error:  # bytes that are no array make numpy raise EOFError, MemoryError, OverflowError and more
        raise ValueError(f"array {name} cannot be read: {error}") from error


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _counts(values: object) -> list[int]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of whole numbers, got {values!r}")
    return [_count(value) for value in values]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value


def _numbers(values: object) -> list[float]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of numbers, got {values!r}")
    return [_number(value) for value in values]


def _texts(values: object) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of texts, got {values!r}")
    return values
