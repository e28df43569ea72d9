"""Names, shapes, sizes and first values of what travels."""

import math

import numpy as np

from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec, is_expertwise, num_parameters

SPEC = MixtureSpec(3, 4, 5, 6, {10: (1, 64, 4), 2: (2, 8, 7)})


def test_names_and_shapes_are_these():
    assert SPEC.trainable() == {
        "pool.keys.2": (3, 4, 2, 8),
        "pool.values.2": (3, 4, 2, 7),
        "pool.keys.10": (3, 4, 1, 64),
        "pool.values.10": (3, 4, 1, 4),
        "gate.hidden.weight": (5, 6),
        "gate.hidden.bias": (5,),
        "gate.output.weight": (3, 5),
        "gate.output.bias": (3,),
    }
    assert SPEC.all() == SPEC.trainable() | {"gate.mean": (6,), "gate.scale": (6,)}


def test_one_expert_has_a_pool_only():
    single = MixtureSpec(1, 4, 5, 6, {2: (2, 8, 7)})
    assert single.all() == single.trainable() == {"pool.keys.2": (1, 4, 2, 8), "pool.values.2": (1, 4, 2, 7)}


def test_what_belongs_to_an_expert_has_experts_first():
    expertwise = {name for name in SPEC.all() if is_expertwise(name)}
    assert expertwise == {name for name, dimensions in SPEC.all().items() if dimensions[0] == 3}
    assert not is_expertwise("gate.hidden.weight") and not is_expertwise("gate.mean")


def test_the_number_of_parameters_counts_what_is_trained():
    assert num_parameters(SPEC) == 3 * 4 * (2 * 8 + 2 * 7 + 64 + 4) + 5 * 6 + 5 + 3 * 5 + 3


def test_first_values_come_from_the_generator():
    first, same, other = (initial_arrays(SPEC, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert {name: array.shape for name, array in first.items()} == SPEC.all()
    assert {array.dtype for array in first.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name.endswith("weight"))


def test_first_prompts_are_as_wide_as_said_and_the_gate_begins_standardised_by_nothing():
    arrays = initial_arrays(MixtureSpec(20, 20, 50, 50, {2: (2, 64, 64)}), np.random.default_rng(0), prompt_scale=0.5)
    # 51,200 draws: the spread is right within 1 %.
    assert math.isclose(arrays["pool.values.2"].std(), 0.5, rel_tol=0.02)
    assert math.isclose(arrays["pool.keys.2"].std(), 0.5 * 8, rel_tol=0.02)
    assert (arrays["gate.scale"] == 1).all() and (arrays["gate.mean"] == 0).all()
    assert (arrays["gate.hidden.bias"] == 0).all() and (arrays["gate.output.bias"] == 0).all()
    assert math.isclose(arrays["gate.hidden.weight"].std(), 50**-0.5, rel_tol=0.05)
