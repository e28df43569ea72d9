"""Arrays are read as NumPy reads them, and what is no array is refused as NumPy does."""

from io import BytesIO

import numpy as np
import pytest

from common.wire import npy
from common.wire.npy import array_of

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.float16),
    np.arange(6, dtype=">i4"),
    np.array(2.5),
    np.zeros((0, 4), dtype=np.int8),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([True, False]),
]


def saved(array):
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_are_those_that_were_saved_and_may_be_changed(array):
    for _ in range(2):
        found = array_of(saved(array))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and found.flags.writeable


def test_a_header_is_parsed_once(monkeypatch):
    array_of(saved(np.ones((3, 7))))
    monkeypatch.setattr(npy.npy, "read_array_header_1_0", None)
    np.testing.assert_array_equal(array_of(saved(np.full((3, 7), 2.0))), np.full((3, 7), 2.0))


def with_shape(shape):
    return saved(np.ones((3, 7))).replace(b"(3, 7)", shape)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array at all",
        saved(np.ones(4))[:-1],
        saved(np.ones(4))[:40],
        saved(np.array([{}], dtype=object)),
        with_shape(b"(-3,7)"),
        with_shape(b"(9, 9)"),
        with_shape(b"(3.,7)"),
    ],
    ids=["nothing", "text", "cut", "half a header", "objects", "negative", "too few", "a broken number"],
)
def test_what_is_no_array_is_refused(data):
    with pytest.raises((ValueError, EOFError, MemoryError, OverflowError, TypeError)):
        array_of(data)
