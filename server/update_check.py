"""The check of a client's update before it is merged: the server trusts none."""

import numpy as np

from common.mixture_arrays import MixtureShape
from common.wire import TrainReply

# Mass that rounding may add to or take from the sum of an update's expert use.
USAGE_TOLERANCE = 1e-3


def check_update(update: TrainReply, shape: MixtureShape) -> None:
    """Raise ValueError, naming the array, unless names, shapes, dtypes and values are what training gives."""
    expected = shape.trainable()
    for name in expected:
        if name not in update.arrays:
            raise ValueError(f"array {name} is missing")
    for name, array in update.arrays.items():
        if name not in expected:
            raise ValueError(f"array {name} is unknown")
        if array.dtype != np.float32:
            raise ValueError(f"array {name} is {array.dtype}, expected float32")
        if array.shape != expected[name]:
            raise ValueError(f"array {name} has shape {list(array.shape)}, expected {list(expected[name])}")
        if not np.isfinite(array).all():
            raise ValueError(f"array {name} holds values that are not finite")
    if update.num_examples < 1:
        raise ValueError(f"num-examples is {update.num_examples}, expected at least 1")
    if update.usage.shape != (shape.num_experts,):
        raise ValueError(f"usage has shape {list(update.usage.shape)}, expected [{shape.num_experts}]")
    if not np.isfinite(update.usage).all() or (update.usage < 0).any():
        raise ValueError("usage holds values that are negative or not finite")
    if abs(update.usage.sum() / update.num_examples - 1) > USAGE_TOLERANCE:
        raise ValueError(f"usage sums to {update.usage.sum():g}, expected num-examples, {update.num_examples}")
    if not np.isfinite(update.loss):
        raise ValueError(f"loss is {update.loss}")
