"""The messages of a round: what the server sends, an update, an evaluation. Nothing else travels in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.config import WireFormat
from common.measures import Measured
from common.mixture_arrays import Arrays
from common.perplexity import AnswerScore
from common.wire.records import (
    pack_arrays,
    pack_measured,
    pack_scores,
    read_array,
    read_count,
    read_number,
    read_texts,
    unpack_arrays,
    unpack_measured,
    unpack_scores,
)


@dataclass(frozen=True)
class Instruction:
    """What the server sends: the round, arrays (of the mixture, mostly), and the tasks in the order of their rows."""

    server_round: int
    arrays: Arrays
    tasks: tuple[str, ...]


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
    """A client's scores by task, and by task the experts' mean weights `[experts]` over its examples.

    After the last round, what else was to be measured.
    """

    scores: dict[str, AnswerScore]
    expert_use: dict[str, NDArray[np.float64]]
    measured: Measured = field(default_factory=dict)


def instruction(
    server_round: int, arrays: Arrays | None = None, tasks: Sequence[str] = (), wire_format: WireFormat = "float32"
) -> RecordDict:
    """Build what the server sends: the round, the mixture, the tasks that it knows by name."""
    content = RecordDict({"config": ConfigRecord({"server-round": server_round, "tasks": list(tasks)})})
    if arrays is not None:
        content["arrays"] = pack_arrays(arrays, wire_format)
    return content


def read_instruction(content: RecordDict) -> Instruction:
    """Read what the server sent."""
    config = content.config_records["config"]
    arrays = unpack_arrays(content.array_records["arrays"]) if "arrays" in content.array_records else {}
    return Instruction(read_count(config["server-round"]), arrays, tuple(read_texts(config["tasks"])))


def pack_train_reply(reply: TrainReply, wire_format: WireFormat = "float32") -> RecordDict:
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
    return RecordDict({"arrays": pack_arrays(reply.arrays, wire_format), "metrics": metrics})


def unpack_train_reply(content: RecordDict) -> TrainReply:
    """Read the reply to a train message. Raises KeyError, TypeError or ValueError for a malformed one."""
    metrics = content.metric_records["metrics"]
    return TrainReply(
        unpack_arrays(content.array_records["arrays"]),
        float(read_number(metrics["loss"])),
        read_count(metrics["num-examples"]),
        np.asarray(metrics["usage"], dtype=np.float64),
        float(read_number(metrics["gate-entropy"])),
        np.asarray(metrics["task-examples"], dtype=np.float64),
    )


def pack_evaluate_reply(reply: EvaluateReply) -> RecordDict:
    """Build the reply to an evaluate message."""
    content = RecordDict({**pack_scores(reply.scores), **pack_measured(reply.measured)})
    use = [reply.expert_use[task] for task in reply.scores]
    content["gate"] = ArrayRecord({"expert-use": Array(np.stack(use))})
    return content


def unpack_evaluate_reply(content: RecordDict, num_experts: int) -> EvaluateReply:
    """Read the reply to an evaluate message. Raises KeyError, TypeError or ValueError for a malformed one."""
    scores = unpack_scores(content)
    use = read_array("expert-use", content.array_records["gate"]["expert-use"])
    shape = (len(scores), num_experts)
    if use.shape != shape or not np.isfinite(use).all() or (use < 0).any():
        raise ValueError(f"expert-use must be finite, not negative and {list(shape)}, got {list(use.shape)}")
    by_task = dict(zip(scores, use.astype(np.float64), strict=True))
    return EvaluateReply(scores, by_task, unpack_measured(content))
