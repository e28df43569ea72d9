"""A random projection that server and clients draw alike, so that second moments of the gate's input stay small."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Second moments of so many features are 1 MB; narrower inputs are not projected.
MAX_FEATURES = 512


@lru_cache(maxsize=1)  # each step of k-means asks for it
def projection(hidden_size: int, seed: int) -> NDArray[np.float64]:
    """Return a matrix `[features, hidden]` that keeps distances on average (Johnson and Lindenstrauss)."""
    if hidden_size <= MAX_FEATURES:
        return np.eye(hidden_size)
    rng = np.random.default_rng([seed, hidden_size])
    return rng.normal(0.0, MAX_FEATURES**-0.5, (MAX_FEATURES, hidden_size))
