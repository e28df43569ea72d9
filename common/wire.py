"""The wire: what is in the messages between server and client. Nothing else travels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from numpy.typing import NDArray

from common.mixture_arrays import Arrays
from common.perplexity import AnswerScore

# The exchanges before round 1; Flower names the others "train" and "evaluate".
PREPARE, MOMENTS, CLUSTERS, VOCABULARY = "prepare", "moments", "clusters", "vocabulary"


@dataclass(frozen=True)
class TrainReply:
    """A client's update.

    `usage` is the gate mass `[experts]` that its examples gave each expert, `task_examples` `[tasks]` how many of them
    were of each task that the server named.
    """

    arrays: Arrays
    loss: float
    num_examples: int
    usage: NDArray[np.float64]
    gate_entropy: float
    task_examples: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class EvaluateReply:
    """A client's scores by task, and by task the experts' mean weights `[experts]` over its examples."""

    scores: dict[str, AnswerScore]
    expert_use: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ClusterReply:
    """A client's part of a step of federated k-means.

    `counts` `[clusters]` and `sums` `[clusters, features]` are of the inputs nearest to each centre, `inertia` is the
    sum of squared distances to it.
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    inertia: float


@dataclass(frozen=True)
class Instruction:
    """What the server sends: the round, arrays (of the mixture, mostly), and the tasks in the order of their rows."""

    server_round: int
    arrays: Arrays
    tasks: tuple[str, ...]


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


def instruction(server_round: int, arrays: Arrays | None = None, tasks: Sequence[str] = ()) -> RecordDict:
    """Build what the server sends: the round, the mixture, the tasks that it knows by name."""
    content = RecordDict({"config": ConfigRecord({"server-round": server_round, "tasks": list(tasks)})})
    if arrays is not None:
        content["arrays"] = pack_arrays(arrays)
    return content


def read_instruction(content: RecordDict) -> Instruction:
    """Read what the server sent."""
    config = content.config_records["config"]
    arrays = unpack_arrays(content.array_records["arrays"]) if "arrays" in content.array_records else {}
    return Instruction(_count(config["server-round"]), arrays, tuple(_texts(config["tasks"])))


def pack_train_reply(reply: TrainReply) -> RecordDict:
    """Build the reply to a train message."""
    metrics = MetricRecord(
        {
            "loss": reply.loss,
            "num-examples": reply.num_examples,
            "usage": reply.usage.tolist(),
            "gate-entropy": reply.gate_entropy,
            "task-examples": reply.task_examples.tolist(),
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
        np.asarray(metrics["task-examples"], dtype=np.float64),
    )


def pack_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Build the reply to an evaluate message."""
    content = pack_scores(reply.scores)
    use = [reply.expert_use[task] for task in reply.scores]
    content["gate"] = ArrayRecord({"expert-use": Array(np.stack(use))})
    return content


def unpack_evaluate_reply(content: RecordDict, num_experts: int) -> EvaluateReply:
    """Read the reply to an evaluate message. Raises KeyError, TypeError or ValueError for a malformed one."""
    scores = unpack_scores(content)
    use = _read_array("expert-use", content.array_records["gate"]["expert-use"])
    shape = (len(scores), num_experts)
    if use.shape != shape or not np.isfinite(use).all() or (use < 0).any():
        raise ValueError(f"expert-use must be finite, not negative and {list(shape)}, got {list(use.shape)}")
    return EvaluateReply(scores, dict(zip(scores, use.astype(np.float64), strict=True)))


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


def pack_pool(pool: Arrays) -> RecordDict:
    """Build the reply that brings first prompts."""
    return RecordDict({"arrays": pack_arrays(pool)})


def unpack_pool(content: RecordDict, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Read first prompts of these shapes. Raises KeyError or ValueError for malformed ones."""
    pool = unpack_arrays(content.array_records["arrays"])
    for name, shape in shapes.items():
        if pool[name].shape != shape or pool[name].dtype != np.float32 or not np.isfinite(pool[name]).all():
            raise ValueError(f"array {name} must be finite float32 {list(shape)}, got {list(pool[name].shape)}")
    return {name: pool[name] for name in shapes}


def pack_cluster_reply(reply: ClusterReply) -> RecordDict:
    """Build the reply to a step of k-means."""
    statistics = {"counts": Array(reply.counts), "sums": Array(reply.sums), "inertia": Array(np.array(reply.inertia))}
    return RecordDict({"statistics": ArrayRecord(statistics)})


def unpack_cluster_reply(content: RecordDict, num_clusters: int, num_features: int) -> ClusterReply:
    """Read the reply to a step of k-means. Raises KeyError or ValueError for a malformed one."""
    record = content.array_records["statistics"]
    arrays = {name: _read_array(name, record[name]).astype(np.float64) for name in ("counts", "sums", "inertia")}
    shapes = {"counts": (num_clusters,), "sums": (num_clusters, num_features), "inertia": ()}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must be finite and {list(shape)}, got {list(arrays[name].shape)}")
    if (arrays["counts"] < 0).any() or arrays["inertia"] < 0:
        raise ValueError("counts and inertia must not be negative")
    return ClusterReply(arrays["counts"], arrays["sums"], float(arrays["inertia"]))


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
