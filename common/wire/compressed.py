"""Arrays on the wire in fewer bytes: float16, or int8 with a scale for each row. Whoever reads them gets float32."""

import numpy as np

from common.config import WireFormat
from common.mixture_arrays import Arrays
from common.mixture_spec import GATE_STATISTICS

SCALE = ":scale"  # ends the name of the array of an int8 array's scales
LARGEST_INT8 = 127


def compress(arrays: Arrays, wire_format: WireFormat) -> Arrays:
    """Return what travels of float32 arrays. The gate's statistics, a few values of any size, travel as they are.

    An int8 array is round(value / scale), with the scale of a row, its largest value / 127, beside it: 1 byte a value
    and 4 a row. Rows are along the last axis.
    """
    if wire_format == "float32":
        return arrays
    small: Arrays = {}
    for name, array in arrays.items():
        if name in GATE_STATISTICS:
            small[name] = array
        elif wire_format == "float16":
            small[name] = array.astype(np.float16)
        else:
            rows = array.reshape(-1, array.shape[-1])
            scale = np.abs(rows).max(axis=1, keepdims=True).astype(np.float32) / LARGEST_INT8
            divided = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
            small[name] = np.rint(divided).astype(np.int8).reshape(array.shape)
            small[name + SCALE] = scale[:, 0]
    return small


def as_received(arrays: Arrays) -> Arrays:
    """Return what arrays that travel as int8 are when they have arrived."""
    return restore(compress(arrays, "int8"))


def restore(arrays: Arrays) -> Arrays:
    """Return what `compress` made small as float32; an array of any other kind stays as it is.

    Raises KeyError for an int8 array without scales, ValueError for scales that are not one for each row.
    """
    whole: Arrays = {}
    for name, array in arrays.items():
        if name.endswith(SCALE):
            continue
        if array.dtype == np.int8:
            scale = arrays[name + SCALE]
            num_rows = array.size // array.shape[-1] if array.ndim and array.size else 0
            if scale.dtype != np.float32 or scale.shape != (num_rows,):
                raise ValueError(f"array {name} of {num_rows} rows has scales {scale.dtype} {list(scale.shape)}")
            whole[name] = (array.reshape(num_rows, -1) * scale[:, None]).reshape(array.shape)
        else:
            whole[name] = array.astype(np.float32) if array.dtype == np.float16 else array
    return whole
