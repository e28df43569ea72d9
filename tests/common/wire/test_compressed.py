"""Arrays in fewer bytes: within a rounding of what they were, and refused where they are not whole."""

import numpy as np
import pytest

from common.wire.compressed import SCALE, compress, restore
from common.wire.message_bytes import message_bytes
from common.wire.records import pack_arrays, unpack_arrays


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        "pool.keys.1": rng.normal(size=(4, 2, 3, 64)) * np.array([1.0, 100.0, 1e-3, 0.0])[:, None, None, None],
        "gate.output.bias": rng.normal(size=(16,)),
        "gate.mean": rng.normal(size=(256,)) * 1e6,  # beyond float16
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def test_float32_travels_as_it_is():
    arrays = drawn()
    assert compress(arrays, "float32") is arrays
    assert all(restore(arrays)[name] is array for name, array in arrays.items())


def test_int8_is_within_half_a_step_of_each_rows_largest_value():
    arrays = drawn()
    found = unpack_arrays(pack_arrays(arrays, "int8"))
    assert found.keys() == arrays.keys()
    assert np.array_equal(found["gate.mean"], arrays["gate.mean"])
    for name in ("pool.keys.1", "gate.output.bias"):
        assert found[name].dtype == np.float32 and found[name].shape == arrays[name].shape
        steps = np.abs(arrays[name]).max(axis=-1, keepdims=True) / 127
        assert (np.abs(found[name] - arrays[name]) <= steps * 0.5001).all()
        assert not np.array_equal(found[name], arrays[name])
    assert (found["pool.keys.1"][3] == 0).all()


def test_float16_is_within_its_rounding():
    arrays = drawn()
    found = unpack_arrays(pack_arrays(arrays, "float16"))
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, rtol=2**-11, atol=1e-7)
    assert np.array_equal(found["gate.mean"], arrays["gate.mean"])


def test_what_was_restored_travels_without_further_loss():
    once = restore(compress(drawn(), "int8"))
    again = restore(compress(once, "int8"))
    for name, array in once.items():
        np.testing.assert_allclose(again[name], array, rtol=1e-6)


def test_bytes_are_a_half_and_a_quarter():
    arrays = {"pool.keys.1": np.random.default_rng(0).normal(size=(64, 4, 8, 128)).astype(np.float32)}
    whole, half, quarter = (message_bytes(pack_arrays(arrays, kind)) for kind in ("float32", "float16", "int8"))
    assert whole / half == pytest.approx(2, rel=0.01)
    assert whole / quarter == pytest.approx(4 / (1 + 4 / 128), rel=0.01)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (None, KeyError),
        (np.ones(1, np.float32), ValueError),
        (np.ones((2, 1), np.float32), ValueError),
        (np.ones(2, np.float64), ValueError),
    ],
)
def test_int8_without_a_scale_for_each_row_is_refused(scale, expected):
    arrays = {"pool.keys.1": np.ones((2, 3), np.int8)}
    if scale is not None:
        arrays["pool.keys.1" + SCALE] = scale
    with pytest.raises(expected, match=r"pool\.keys\.1"):
        restore(arrays)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_an_int8_array_without_values_is_no_crash(shape):
    with pytest.raises(ValueError, match="has scales"):
        restore({"a": np.ones(shape, np.int8), "a" + SCALE: np.ones(5, np.float32)})
