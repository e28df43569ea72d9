"""The projection of the gate's input: the same for all, and kind to distances."""

import numpy as np
import pytest

from common.projection import MAX_FEATURES, projection


def test_narrow_inputs_are_not_projected():
    assert np.array_equal(projection(MAX_FEATURES, 0), np.eye(MAX_FEATURES))


def test_wide_inputs_shrink_and_keep_their_distances():
    matrix = projection(2048, 0)
    assert matrix.shape == (MAX_FEATURES, 2048)
    points = np.random.default_rng(0).normal(size=(2048, 20))
    ratios = np.linalg.norm(matrix @ points, axis=0) / np.linalg.norm(points, axis=0)
    assert ratios == pytest.approx(np.ones(20), abs=0.13)  # 4 sigma of 1 / sqrt(2 x 512)


def test_the_seed_decides():
    assert np.array_equal(projection(600, 1), projection(600, 1))
    assert not np.array_equal(projection(600, 1), projection(600, 2))
