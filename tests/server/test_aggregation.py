"""The merged mixture is the mean of the updates, expert by expert, weighted by use."""

from dataclasses import replace

import numpy as np
import pytest

from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec, is_expertwise, is_taskwise
from common.wire.rounds import TrainReply
from server.aggregation import WeightedMean


def values(spec: MixtureSpec, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=size).astype(np.float32) for name, size in spec.all().items()}


def update(spec: MixtureSpec, seed: int, num_examples: int, usage: list[float]) -> TrainReply:
    arrays = values(spec, seed)
    return TrainReply({name: arrays[name] for name in spec.trainable()}, 1.0, num_examples, np.array(usage), 0.0)


@pytest.fixture
def updates(spec: MixtureSpec) -> list[TrainReply]:
    return [
        update(spec, 1, 8, [5.25, 2.75, 0.0]),
        update(spec, 2, 24, [0.125, 23.875, 0.0]),
        update(spec, 3, 5, [0.0, 5.0, 0.0]),
    ]


def merge(arrays: Arrays, updates: list[TrainReply]) -> Arrays:
    mean = WeightedMean()
    for each in updates:
        mean.add(each)
    return mean.merge_into(arrays)


def slow_merge(arrays: Arrays, updates: list[TrainReply]) -> Arrays:
    """Compute each value's mean on its own, in Python's floats."""
    merged = {name: array.copy() for name, array in arrays.items()}
    for name in updates[0].arrays:
        for index in np.ndindex(arrays[name].shape):
            weights = [float(u.usage[index[0]]) if is_expertwise(name) else float(u.num_examples) for u in updates]
            if sum(weights) > 0:
                products = [w * float(u.arrays[name][index]) for w, u in zip(weights, updates, strict=True)]
                merged[name][index] = sum(products) / sum(weights)
    return merged


def assert_same(first: Arrays, second: Arrays) -> None:
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name, strict=True)


def test_merge_equals_a_slow_reference(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    assert_same(merge(arrays, updates), slow_merge(arrays, updates))  # the same float64 operations, so to the bit


def test_merge_leaves_what_it_was_given_as_it_was(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    merge(arrays, updates)
    assert_same(arrays, values(spec, 0))


def test_an_expert_that_nobody_used_stays_exactly(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    merged = merge(arrays, updates)
    for name in filter(is_expertwise, spec.trainable()):
        np.testing.assert_array_equal(merged[name][2], arrays[name][2], err_msg=name)
        assert (merged[name][:2] != arrays[name][:2]).all(), name


def test_a_client_does_not_pull_an_expert_that_it_did_not_use(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    merged, without = merge(arrays, updates), merge(arrays, updates[:2])
    for name in spec.trainable():
        if is_expertwise(name):
            np.testing.assert_array_equal(merged[name][0], without[name][0], err_msg=name)
        else:
            assert (merged[name] != without[name]).any(), name


def test_one_client_alone_gives_its_values_exactly(spec: MixtureSpec) -> None:
    only = update(spec, 1, 7, [1 / 3, 6.6, 7 - 1 / 3 - 6.6])
    arrays = values(spec, 0)
    assert_same(merge(arrays, [only]), arrays | only.arrays)


def test_arrays_of_no_expert_are_weighted_by_examples(spec: MixtureSpec) -> None:
    updates = [update(spec, 1, 1, [1.0, 0.0, 0.0]), update(spec, 2, 3, [3.0, 0.0, 0.0])]
    for value, each in zip((0.0, 8.0), updates, strict=True):
        each.arrays["gate.hidden.weight"][:] = value
        each.arrays["gate.hidden.bias"][:] = value
    merged = merge(values(spec, 0), updates)
    assert (merged["gate.hidden.weight"] == 6.0).all()
    assert (merged["gate.hidden.bias"] == 6.0).all()


def test_the_gates_statistics_stay(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    merged = merge(arrays, updates)
    assert merged["gate.mean"] is arrays["gate.mean"]
    assert merged["gate.scale"] is arrays["gate.scale"]


def test_the_order_of_updates_changes_rounding_at_most(spec: MixtureSpec, updates: list[TrainReply]) -> None:
    arrays = values(spec, 0)
    forth, back = merge(arrays, updates), merge(arrays, updates[::-1])
    for name in forth:  # sums in float64; the result may round to the float32 beside
        np.testing.assert_allclose(forth[name], back[name], rtol=2**-22, err_msg=name)


def test_usage_is_the_mass_of_all_updates(updates: list[TrainReply]) -> None:
    mean = WeightedMean()
    for each in updates:
        mean.add(each)
    assert mean.usage.tolist() == [5.375, 31.625, 0.0]


def test_the_mean_of_equal_updates_is_that_update(spec: MixtureSpec) -> None:
    same = [update(spec, 1, 4, usage) for usage in ([4.0, 0.0, 0.0], [1.0, 1.0, 2.0])]
    assert_same(merge(values(spec, 0), same), values(spec, 0) | same[0].arrays)


def test_plain_aggregation_is_the_mean_by_examples_of_everything(
    with_tasks: MixtureSpec, by_task: list[TrainReply]
) -> None:
    mean = WeightedMean(by_use=False)
    for each in by_task:
        mean.add(each)
    arrays = values(with_tasks, 0)
    expected = dict(arrays)
    for name in with_tasks.trainable():
        expected[name] = np.empty_like(arrays[name])
        for index in np.ndindex(arrays[name].shape):
            products = [float(each.num_examples) * float(each.arrays[name][index]) for each in by_task]
            expected[name][index] = sum(products) / 37.0
    assert_same(mean.merge_into(arrays), expected)  # the same float64 operations, so to the bit


# --- Rows of tasks, and the shared expert ---

TASKS = ("a", "b", "c", "d")


@pytest.fixture
def with_tasks(spec: MixtureSpec) -> MixtureSpec:
    return replace(spec, gate="both", task_embedding_size=3, tasks=TASKS, learned_task_weights=True, shared_expert=True)


@pytest.fixture
def by_task(with_tasks: MixtureSpec) -> list[TrainReply]:
    """Build updates of three clients: a is held by one, b by two, c by all, d by nobody."""
    return [
        replace(update(with_tasks, 1, 8, [5.25, 2.75, 8.0]), task_examples=np.array([3.0, 0.0, 5.0, 0.0])),
        replace(update(with_tasks, 2, 24, [0.125, 23.875, 24.0]), task_examples=np.array([0.0, 7.0, 17.0, 0.0])),
        replace(update(with_tasks, 3, 5, [0.0, 5.0, 5.0]), task_examples=np.array([0.0, 4.0, 1.0, 0.0])),
    ]


TASKWISE = ("gate.task_embeddings", "task_log_variances")


def test_rows_of_tasks_are_averaged_over_the_clients_that_hold_the_task(
    with_tasks: MixtureSpec, by_task: list[TrainReply]
) -> None:
    assert {name for name in with_tasks.all() if is_taskwise(name)} == {*TASKWISE}
    arrays = values(with_tasks, 0)
    merged = merge(arrays, by_task)
    for name in TASKWISE:
        sent = [each.arrays[name].astype(np.float64) for each in by_task]
        expected = [
            sent[0][0],
            (7 * sent[1][1] + 4 * sent[2][1]) / 11,
            (5 * sent[0][2] + 17 * sent[1][2] + sent[2][2]) / 23,
            arrays[name][3],  # nobody held it
        ]
        np.testing.assert_allclose(merged[name], np.array(expected), rtol=2**-22, err_msg=name)
        np.testing.assert_array_equal(merged[name][3], arrays[name][3], err_msg=name)


def test_the_shared_expert_counts_by_examples_and_the_gates_rows_by_their_expert(
    with_tasks: MixtureSpec, by_task: list[TrainReply]
) -> None:
    merged = merge(values(with_tasks, 0), by_task)
    usage = np.array([each.usage for each in by_task])
    expertwise = [name for name in with_tasks.trainable() if is_expertwise(name)]
    assert {"pool.keys.1", "gate.output.weight", "gate.output.bias", "gate.expert_keys"} <= {*expertwise}
    for name in expertwise:
        rows = 3 if name.startswith("pool.") else 2
        assert merged[name].shape[0] == rows
        for row in range(rows):
            weighted = [
                w * each.arrays[name][row].astype(np.float64) for w, each in zip(usage[:, row], by_task, strict=True)
            ]
            expected = np.sum(weighted, axis=0) / usage[:, row].sum()
            np.testing.assert_allclose(merged[name][row], expected, rtol=2**-22, atol=1e-9, err_msg=name)


def test_the_query_of_the_task_gate_counts_by_examples(with_tasks: MixtureSpec, by_task: list[TrainReply]) -> None:
    merged = merge(values(with_tasks, 0), by_task)["gate.query.weight"]
    weighted = [each.num_examples * each.arrays["gate.query.weight"].astype(np.float64) for each in by_task]
    np.testing.assert_allclose(merged, np.sum(weighted, axis=0) / 37, rtol=2**-22, atol=1e-9)


def test_a_client_without_a_task_does_not_pull_its_row(with_tasks: MixtureSpec, by_task: list[TrainReply]) -> None:
    arrays = values(with_tasks, 0)
    for name in TASKWISE:
        whole, without = merge(arrays, by_task)[name], merge(arrays, by_task[:1])[name]
        np.testing.assert_array_equal(whole[0], without[0], err_msg=name)
