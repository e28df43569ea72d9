"""The messages before round 1: what a client is, and sums of its gate's inputs. Nothing else travels then."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.adapter_spec import PEFT_TYPES, AdapterSpec, PeftCard, are_arrays_of, frozen_arrays, tasks_with_rows
from common.data_counts import CutCounts, DataCounts
from common.measures import Measured
from common.mixture_arrays import Arrays
from common.mixture_spec import is_taskwise
from common.perplexity import AnswerScore
from common.wire.records import (
    pack_arrays,
    pack_measured,
    pack_scores,
    read_array,
    read_count,
    read_counts,
    read_flag,
    read_texts,
    unpack_arrays,
    unpack_measured,
    unpack_scores,
)

# The exchanges before round 1; Flower names the others "train" and "evaluate".
PREPARE, MOMENTS, CLUSTERS = "prepare", "moments", "clusters"
VOCABULARY, ADAPTER = "vocabulary", "adapter"
QUERIES = (PREPARE, MOMENTS, CLUSTERS, VOCABULARY, ADAPTER)
MAX_CARD_CHARACTERS = 100_000  # most have about a thousand; some name every layer


@dataclass(frozen=True)
class PrepareReply:
    """What a client tells once: its backbone, and sums of the gate's input over its training examples by task.

    `fingerprint` names the backbone under the run's quantization; the hashes tell apart what of it may differ.
    `sums` and `squares` are `[tasks, gate input]`, `counts` is `[tasks]`. `kv_shapes` maps layers to (key/value heads,
    key size, value size). Scores and measures are those of the backbone alone.
    """

    partition: int
    fingerprint: str
    weights_hash: str
    tokenizer_hash: str
    quantization: str
    hidden_size: int
    gate_input_size: int
    kv_shapes: dict[int, tuple[int, int, int]]
    tasks: list[str]
    domains: list[str]
    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    scores: dict[str, AnswerScore]
    data_counts: DataCounts
    measured: Measured = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterReply:
    """A client's part of a step of federated k-means.

    `counts` `[clusters]` and `sums` `[clusters, features]` are of the inputs nearest to each centre, `inertia` is the
    sum of squared distances to it.
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    inertia: float


def pack_prepare_reply(reply: PrepareReply) -> RecordDict:
    """Build the reply to the first exchange."""
    content = RecordDict({**pack_scores(reply.scores), **pack_measured(reply.measured)})
    layers = sorted(reply.kv_shapes)
    content["about"] = ConfigRecord(
        {
            "partition": reply.partition,
            "fingerprint": reply.fingerprint,
            "weights-hash": reply.weights_hash,
            "tokenizer-hash": reply.tokenizer_hash,
            "quantization": reply.quantization,
            "hidden-size": reply.hidden_size,
            "gate-input-size": reply.gate_input_size,
            "layers": layers,
            "kv-shapes": [size for layer in layers for size in reply.kv_shapes[layer]],
            "tasks": reply.tasks,
            "domains": reply.domains,
        }
    )
    data = reply.data_counts
    content["data"] = ConfigRecord(
        {
            "train": list(astuple(data.train)),
            "evaluation": list(astuple(data.evaluation)),
            "num-bad-rows": data.num_bad_rows,
            "is-own": data.is_own,
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
    layers, sizes = read_counts(about["layers"]), read_counts(about["kv-shapes"])
    return PrepareReply(
        partition=read_count(about["partition"]),
        fingerprint=str(about["fingerprint"]),
        weights_hash=str(about["weights-hash"]),
        tokenizer_hash=str(about["tokenizer-hash"]),
        quantization=str(about["quantization"]),
        hidden_size=read_count(about["hidden-size"]),
        gate_input_size=read_count(about["gate-input-size"]),
        kv_shapes=dict(zip(layers, zip(sizes[::3], sizes[1::3], sizes[2::3], strict=True), strict=True)),
        tasks=read_texts(about["tasks"]),
        domains=read_texts(about["domains"]),
        counts=read_array("counts", statistics["counts"]),
        sums=read_array("sums", statistics["sums"]),
        squares=read_array("squares", statistics["squares"]),
        scores=unpack_scores(content),
        data_counts=_unpack_data_counts(content.config_records["data"]),
        measured=unpack_measured(content),
    )


def _unpack_data_counts(record: ConfigRecord) -> DataCounts:
    return DataCounts(
        train=_unpack_cut_counts(record["train"]),
        evaluation=_unpack_cut_counts(record["evaluation"]),
        num_bad_rows=read_count(record["num-bad-rows"]),
        is_own=read_flag(record["is-own"]),
    )


def _unpack_cut_counts(values: object) -> CutCounts:
    examples, answers_too_long, prompts_too_long, prompts_cut = read_counts(values)
    return CutCounts(examples, answers_too_long, prompts_too_long, prompts_cut)


def pack_moments(moments: NDArray[np.float32]) -> RecordDict:
    """Build the reply to the second exchange: second moments `[features, features]` of the gate's input."""
    return RecordDict({"statistics": pack_arrays({"moments": moments})})


def unpack_moments(content: RecordDict) -> NDArray[np.float64]:
    """Read second moments. Raises KeyError or ValueError for malformed ones."""
    moments = read_array("moments", content.array_records["statistics"]["moments"]).astype(np.float64)
    if moments.ndim != 2 or moments.shape[0] != moments.shape[1] or not np.isfinite(moments).all():
        raise ValueError(f"the moments are not a finite square matrix, but {list(moments.shape)}")
    return moments


def pack_cluster_reply(reply: ClusterReply) -> RecordDict:
    """Build the reply to a step of k-means."""
    statistics = {"counts": Array(reply.counts), "sums": Array(reply.sums), "inertia": Array(np.array(reply.inertia))}
    return RecordDict({"statistics": ArrayRecord(statistics)})


def unpack_cluster_reply(content: RecordDict, num_clusters: int, num_features: int) -> ClusterReply:
    """Read the reply to a step of k-means. Raises KeyError or ValueError for a malformed one."""
    record = content.array_records["statistics"]
    arrays = {name: read_array(name, record[name]).astype(np.float64) for name in ("counts", "sums", "inertia")}
    shapes = {"counts": (num_clusters,), "sums": (num_clusters, num_features), "inertia": ()}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must be finite and {list(shape)}, got {list(arrays[name].shape)}")
    if (arrays["counts"] < 0).any() or arrays["inertia"] < 0:
        raise ValueError("counts and inertia must not be negative")
    return ClusterReply(arrays["counts"], arrays["sums"], float(arrays["inertia"]))


def pack_adapter(peft_card: PeftCard, arrays: Arrays) -> RecordDict:
    """Build the reply that brings a first adapter."""
    return RecordDict({"arrays": pack_arrays(arrays), "about": ConfigRecord({"peft-card": json.dumps(peft_card)})})


def unpack_adapter(content: RecordDict, method: str, tasks: Sequence[str]) -> tuple[AdapterSpec, Arrays]:
    """Read a method's first adapter. Raises KeyError, TypeError or ValueError for a malformed one."""
    arrays = unpack_arrays(content.array_records["arrays"])
    if not are_arrays_of(method, arrays):
        raise ValueError(f"the arrays are not those of {method}")
    (text,) = read_texts([content.config_records["about"]["peft-card"]])
    peft_card = _read_card(text)
    if peft_card.get("peft_type") != PEFT_TYPES[method]:
        raise ValueError(f"peft's configuration is not that of {method}")
    with_rows = tasks_with_rows(method, tasks)
    for name, array in arrays.items():
        if array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
            raise ValueError(f"array {name} must be finite float32, got {array.dtype} {list(array.shape)}")
        if is_taskwise(name) and array.shape[:1] != (len(with_rows),):
            raise ValueError(f"array {name} must have {len(with_rows)} rows, one a task, got {list(array.shape)}")
    shapes = {name: array.shape for name, array in arrays.items()}
    return AdapterSpec(shapes, frozen_arrays(method, shapes), with_rows, peft_card), arrays


def _read_card(text: str) -> PeftCard:
    """Read a configuration, which is saved with every round: short, and nested no deeper than peft's."""
    if len(text) > MAX_CARD_CHARACTERS:
        raise ValueError(f"peft's configuration has {len(text)} characters, expected {MAX_CARD_CHARACTERS} at most")
    try:
        described = json.loads(text)
    except RecursionError:
        described = None
    flat = isinstance(described, dict) and not any(map(_is_nested, described.values()))
    if not flat:
        raise ValueError("peft's configuration must be an object without deeper ones in it")
    card: PeftCard = described
    return card


def _is_nested(value: object) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(each, dict | list) for each in inner)


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
