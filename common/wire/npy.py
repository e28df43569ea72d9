"""Arrays from the bytes of NumPy's own format, whose headers are parsed once: a federation's arrays have few shapes.

NumPy parses the header's text at every read, which was a fifth of a round without work (docs/log.md).
"""

import math
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAGIC_SIZE = npy.MAGIC_LEN + 2  # and the header's length, two bytes in version 1


def array_of(data: bytes) -> NDArray[Any]:
    """Read an array. Raises what NumPy raises for bytes that are none, or objects."""
    size = MAGIC_SIZE + int.from_bytes(data[npy.MAGIC_LEN : MAGIC_SIZE], "little")
    shape, dtype = _plain(data[:size])
    if dtype is None or min(shape, default=0) < 0:
        return np.load(BytesIO(data), allow_pickle=False)  # type: ignore[no-any-return]
    return np.frombuffer(data, dtype, math.prod(shape), size).reshape(shape).copy()


@lru_cache(maxsize=256)
def _plain(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any] | None]:
    """Read a header; no dtype for one that NumPy had better look at itself."""
    if not head.startswith(npy.magic(1, 0)):
        return (), None
    stream = BytesIO(head)
    npy.read_magic(stream)
    shape, in_fortran_order, dtype = npy.read_array_header_1_0(stream)
    return shape, None if in_fortran_order or dtype.hasobject else dtype
