"""Malformed messages raise what the server catches, and say what was expected."""

import io
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from messages import (
    ADAPTER_ARRAYS,
    ARRAYS,
    CARD,
    MEASURED,
    SCORES,
    cluster_reply,
    evaluate_reply,
    prepare_reply,
    read_adapter,
    read_clusters,
    read_pool,
    read_use,
    train_reply,
)

from common.wire.preparation import (
    pack_adapter,
    pack_cluster_reply,
    pack_moments,
    pack_pool,
    pack_prepare_reply,
    unpack_adapter,
    unpack_moments,
    unpack_prepare_reply,
)
from common.wire.records import pack_measured, pack_scores, unpack_arrays, unpack_measured, unpack_scores
from common.wire.rounds import (
    pack_evaluate_reply,
    pack_train_reply,
    unpack_train_reply,
)


def without(record, key):
    return type(record)({name: value for name, value in record.items() if name != key})


def array_claiming(shape):
    """Build an array whose bytes claim a shape that they do not have."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return Array("float32", shape, "numpy.ndarray", file.getvalue())


def broken_contents(content):
    """Yield the content with each record and each key left out, then with each value replaced by another kind."""
    for name, record in content.items():
        yield RecordDict({other: content[other] for other in content if other != name})
        for key in record:
            yield RecordDict({**content, name: without(record, key)})
            if isinstance(record, MetricRecord):
                others = [1, 1.5, float("nan"), float("inf"), [], [1], [0.5, float("inf")], [float("nan")] * 2]
            elif isinstance(record, ConfigRecord):
                others = ["x", b"x", True, -1, float("inf"), [], ["x"], [1], [1, 2], [1.5, float("inf")], [b"x"]]
            else:
                others = [
                    Array("float32", (1,), "numpy.ndarray", data)
                    for data in (b"", b"garbage", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}")
                ]
                others += [Array("float32", (1,), "torch.Tensor", b"x"), Array(np.zeros((0,)))]
                others += [array_claiming((3,)), array_claiming((10**13,)), array_claiming((10**30,))]
            for value in others:
                yield RecordDict({**content, name: type(record)({**record, key: value})})


@pytest.mark.parametrize(
    ("unpack", "content"),
    [
        (unpack_train_reply, pack_train_reply(train_reply())),
        (unpack_scores, pack_scores(SCORES)),
        (read_use, pack_evaluate_reply(evaluate_reply())),
        (read_clusters, pack_cluster_reply(cluster_reply())),
        (read_pool, pack_pool(ARRAYS)),
        (read_adapter, pack_adapter(CARD, ADAPTER_ARRAYS)),
        (unpack_prepare_reply, pack_prepare_reply(prepare_reply())),
        (unpack_moments, pack_moments(np.eye(2, dtype=np.float32))),
    ],
)
def test_a_malformed_reply_raises_only_what_the_server_catches(unpack, content):
    num_broken, escaped = 0, []
    for broken in broken_contents(content):
        num_broken += 1
        try:
            unpack(broken)
        except (KeyError, TypeError, ValueError):
            pass
        except Exception as error:
            escaped.append(f"{type(error).__name__}: {error}")
    assert num_broken > 8
    assert escaped == []


@pytest.mark.parametrize(
    "unpack",
    [
        unpack_train_reply,
        unpack_scores,
        unpack_prepare_reply,
        unpack_moments,
        read_use,
        read_clusters,
        read_pool,
        read_adapter,
    ],
)
def test_an_empty_reply_is_a_key_error(unpack):
    with pytest.raises(KeyError):
        unpack(RecordDict())


def test_wrong_kinds_are_refused():
    content = pack_scores(SCORES)
    impossible = {
        "nll": ([1.0], [-1.0, 0.0], [float("nan"), 0.0], [0.0, float("inf")]),
        "num-tokens": ([0, 1], [1, -1]),
        "num-characters": ([0, 1], [-1, 1]),
        "num-examples": ([0, 1], [-1, 1]),
    }
    for key, values in ((key, values) for key, several in impossible.items() for values in several):
        metrics = MetricRecord({**content["scores"], key: values})
        with pytest.raises(ValueError):
            unpack_scores(RecordDict({**content, "scores": metrics}))
    content["tasks"] = ConfigRecord({"names": "ab"})
    with pytest.raises(TypeError, match="expected a list of texts, got 'ab'"):
        unpack_scores(content)
    content = pack_train_reply(train_reply())
    content["metrics"] = MetricRecord({**content["metrics"], "loss": [1.0]})
    with pytest.raises(TypeError, match=r"expected a number, got \[1.0\]"):
        unpack_train_reply(content)


@pytest.mark.parametrize(
    ("record", "key", "value", "error"),
    [
        ("measures", "sums", [float("nan"), 0.0, 1.0], ValueError),
        ("measures", "sums", [float("inf"), 0.0, 1.0], ValueError),
        ("measures", "sums", [-0.5, 0.0, 1.0], ValueError),
        ("measures", "sums", [3.5, 0.0, 1.0], ValueError),  # of 3 examples
        ("measures", "sums", [0.0, 0.0], ValueError),
        ("measures", "sums", 0.5, TypeError),
        ("measures", "counts", [0, 1, 1], ValueError),
        ("measures", "counts", [-1, 1, 1], ValueError),
        ("measures", "counts", [3.0, 1.0, 1.0], TypeError),
        ("measured", "names", ["rouge-l", "rouge-l", "rouge-l"], ValueError),  # twice of one task
        ("measured", "names", ["rouge-l"], ValueError),
        ("measured", "tasks", [1, 2, 3], TypeError),
    ],
)
def test_measures_that_cannot_be_are_refused(record, key, value, error):
    content = pack_measured(MEASURED)
    broken = RecordDict({**content, record: type(content[record])({**content[record], key: value})})
    with pytest.raises(error):
        unpack_measured(broken)


@pytest.mark.parametrize("record", ["measures", "measured"])
def test_half_of_the_measures_is_refused(record):
    content = pack_measured(MEASURED)
    with pytest.raises(KeyError):
        unpack_measured(RecordDict({record: content[record]}))


def test_no_scores_are_refused():
    empty = MetricRecord({"nll": [], "num-tokens": [], "num-characters": [], "num-examples": []})
    with pytest.raises(ValueError, match="there are no scores"):
        unpack_scores(RecordDict({"tasks": ConfigRecord({"names": []}), "scores": empty}))


def test_arrays_of_a_foreign_kind_are_refused():
    record = ArrayRecord({"x": Array("float32", (1,), "torch.Tensor", b"x")})
    with pytest.raises((TypeError, ValueError), match=r"torch\.Tensor"):
        unpack_arrays(record)


@pytest.mark.parametrize("bad", [np.ones(4), np.ones((2, 3)), np.full((2, 2), np.inf)])
def test_moments_that_are_no_finite_square_are_refused(bad):
    with pytest.raises(ValueError, match="the moments are not a finite square matrix"):
        unpack_moments(pack_moments(bad))


EVEN = np.full((2, 3), 1 / 3)


@pytest.mark.parametrize("bad", [EVEN[:1], EVEN[:, :2], EVEN[0], -EVEN, EVEN * np.nan, EVEN * np.inf])
def test_expert_use_that_cannot_be_is_refused(bad):
    content = pack_evaluate_reply(evaluate_reply())
    content["gate"] = ArrayRecord({"expert-use": Array(bad)})
    with pytest.raises(ValueError, match=r"expert-use must be finite, not negative and \[2, 3\], got"):
        read_use(content)


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("counts", np.ones(3), r"counts must be finite and \[2\], got \[3\]"),
        ("counts", np.array([1.0, -1.0]), "counts and inertia must not be negative"),
        ("counts", np.array([1.0, np.nan]), r"counts must be finite and \[2\]"),
        ("sums", np.ones((3, 2)), r"sums must be finite and \[2, 3\], got \[3, 2\]"),
        ("sums", np.full((2, 3), np.inf), r"sums must be finite and \[2, 3\]"),
        ("inertia", np.array(-1.0), "counts and inertia must not be negative"),
        ("inertia", np.array([1.0]), r"inertia must be finite and \[\], got \[1\]"),
        ("inertia", np.array(np.nan), r"inertia must be finite and \[\]"),
    ],
)
def test_clusters_that_cannot_be_are_refused(name, bad, reason):
    content = pack_cluster_reply(cluster_reply())
    content["statistics"] = ArrayRecord({**content.array_records["statistics"], name: Array(bad)})
    with pytest.raises(ValueError, match=reason):
        read_clusters(content)


@pytest.mark.parametrize(
    "change", [lambda a: a[:2], lambda a: a.astype(np.float64), lambda a: a * np.float32(np.nan), lambda a: a[None]]
)
def test_first_prompts_that_do_not_fit_are_refused(change):
    pool = ARRAYS | {"pool.values.3": change(ARRAYS["pool.values.3"])}
    with pytest.raises(ValueError, match=r"array pool\.values\.3 must be finite float32 \[3, 4, 2, 7\], got"):
        read_pool(pack_pool(pool))


def with_card(text):
    content = pack_adapter(CARD, ADAPTER_ARRAYS)
    content["about"] = ConfigRecord({"peft-card": text})
    return content


def with_arrays(**changes):
    return pack_adapter(CARD, ADAPTER_ARRAYS | changes)


ROWS = np.ones((2, 1, 4), np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            with_arrays(prompt_embeddings=np.zeros((3, 4))),
            r"prompt_embeddings must be finite float32, got float64 \[3, 4",
        ),
        (with_arrays(prompt_embeddings=np.full((3, 4), np.nan, np.float32)), "must be finite float32, got float32"),
        (with_arrays(prompt_embeddings=np.full((3, 4), np.inf, np.float32)), "must be finite float32, got float32"),
        (with_arrays(prompt_embeddings=np.zeros((0, 4), np.float32)), r"must be finite float32, got float32 \[0, 4\]"),
        (with_arrays(prompt_embeddings=np.array([["a"]])), "must be finite float32, got <U1"),
        (with_arrays(prefix_task_rows=ROWS[:1]), r"prefix_task_rows must have 2 rows, one a task, got \[1, 1, 4\]"),
        (with_arrays(prefix_task_cols=np.concatenate([ROWS, ROWS])), "prefix_task_cols must have 2 rows"),
        (
            with_arrays(prefix_task_rows=np.array(1.0, np.float32)),
            r"prefix_task_rows must have 2 rows, one a task, got \[\]",
        ),
        (with_arrays(__metadata__=ROWS), "the arrays are not those of multitask-prompt-tuning"),
        (pack_adapter(CARD, {}), "the arrays are not those of multitask-prompt-tuning"),
        (with_card(""), "Expecting value"),
        (with_card("{"), "Expecting property name"),
        (with_card("[]"), "must be an object without deeper ones"),
        (with_card("null"), "must be an object without deeper ones"),
        (with_card('"text"'), "must be an object without deeper ones"),
        (with_card("[" * 90_000), "must be an object without deeper ones"),
        (with_card('{"a":' * 1500 + "1" + "}" * 1500), "must be an object without deeper ones"),
        (with_card(json.dumps(CARD | {"a": [[1]]})), "must be an object without deeper ones"),
        (with_card(json.dumps(CARD | {"a": {"b": {}}})), "must be an object without deeper ones"),
        (with_card(json.dumps(CARD | {"a": "x" * 100_000})), "characters, expected 100000 at most"),
        (with_card("{}"), "peft's configuration is not that of multitask-prompt-tuning"),
        (with_card('{"peft_type": "MIXTURE_OF_PROMPTS"}'), "peft's configuration is not that of"),
    ],
)
def test_a_malformed_adapter_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        read_adapter(content)


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight" for which in "AB")


@pytest.mark.parametrize("method", ["lora", "ffa-lora"])
@pytest.mark.parametrize(
    "names", [[A], [A, B, "other"], [B, "base_model.model.a/../b.lora_A.weight"], [B, "lora_A.weight"]]
)
def test_arrays_that_are_not_loras_are_refused(method, names):
    arrays = {name: np.ones((2, 2), np.float32) for name in names}
    with pytest.raises(ValueError, match=f"the arrays are not those of {method}"):
        unpack_adapter(pack_adapter({"peft_type": "LORA"}, arrays), method, [])


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("train", [9, 1, 1], ValueError),
        ("train", [9, 1, 1, 2, 0], ValueError),
        ("evaluation", ["9", "1", "1", "2"], TypeError),
        ("num-bad-rows", 0.5, TypeError),
        ("is-own", 1, TypeError),
    ],
)
def test_malformed_counts_of_data_are_refused(key, value, error):
    content = pack_prepare_reply(prepare_reply())
    content["data"] = ConfigRecord({**content["data"], key: value})
    with pytest.raises(error):
        unpack_prepare_reply(content)
