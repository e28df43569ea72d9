"""The bytes of a message, against what Flower writes of it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from common.wire.message_bytes import message_bytes

RNG = np.random.default_rng(0)
DRAWN = Array(RNG.normal(size=(3, 5)).astype(np.float32))
TWO_CHUNKS = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE + 1000


def written(content):
    """What Flower ships: every object once, by its hash."""
    return sum(len(each.deflate()) for each in get_all_nested_objects(content).values())


CONTENTS = {
    "empty": RecordDict(),
    "empty records": RecordDict({"a": ArrayRecord(), "m": MetricRecord(), "c": ConfigRecord()}),
    "array": RecordDict({"a": ArrayRecord({"x": DRAWN})}),
    "no elements": RecordDict({"a": ArrayRecord({"x": Array(np.zeros((0, 4), dtype=np.int8))})}),
    "no bytes": RecordDict({"a": ArrayRecord({"x": Array(dtype="float32", shape=(0,), stype="raw", data=b"")})}),
    "scalar": RecordDict({"a": ArrayRecord({"x": Array(np.array(1.5))})}),
    "equal arrays": RecordDict({"a": ArrayRecord({"x": DRAWN, "y": Array(DRAWN.numpy()), "z": Array(np.ones(3))})}),
    "equal bytes, unlike shapes": RecordDict(
        {"a": ArrayRecord({str(n): Array("float32", s, "raw", b"\0" * 24) for n, s in enumerate([(6,), (2, 3)])})}
    ),
    "equal records": RecordDict({"a": ArrayRecord({"x": DRAWN}), "b": ArrayRecord({"x": DRAWN})}),
    "unlike names": RecordDict({"a": ArrayRecord({"x": DRAWN}), "b": ArrayRecord({"y": DRAWN})}),
    "equal metrics": RecordDict(
        {"a": MetricRecord({"n": 1}), "b": MetricRecord({"n": 1}), "c": MetricRecord({"n": 2})}
    ),
    "two chunks": RecordDict({"a": ArrayRecord({"x": Array(RNG.normal(size=TWO_CHUNKS // 8))})}),
    "equal chunks": RecordDict({"a": ArrayRecord({"x": Array("uint8", (1,), "raw", b"\0" * 3 * TWO_CHUNKS)})}),
    "everything": RecordDict(
        {
            "gate ü": ArrayRecord({f"layer {n}.é": Array(RNG.normal(size=(n + 1, 4))) for n in range(12)}),
            "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2, 300000]}),
            "config": ConfigRecord({"names": ["a", "ß"], "on": True, "raw": b"123"}),
        }
    ),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_bytes_are_those_that_flower_writes(content):
    assert message_bytes(content) == written(content)
