"""The gate that the server fits on sums is the gate that clients run, and tells tasks apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.data_counts import DataCounts
from common.mixture import UNKNOWN_TASK, Gate
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.preparation import PrepareReply
from server.expert_groups import dealt
from server.gate_fit import covariance_within, fit_input_gate, gate_loss
from server.gate_statistics import GateStatistics, standardise, sum_statistics

HIDDEN = 12
SPEC = MixtureSpec(num_experts=4, tokens_per_expert=1, gate_hidden_size=6, hidden_size=HIDDEN, kv_shapes={0: (1, 2, 2)})
Float = NDArray[np.float64]


def reply(client: int, by_task: dict[str, Float], domains: dict[str, str] | None = None) -> PrepareReply:
    """Build a client's reply from its gate inputs by task, `[examples, hidden]`."""
    return PrepareReply(
        partition=client,
        fingerprint="",
        weights_hash="",
        tokenizer_hash="",
        quantization="none",
        hidden_size=HIDDEN,
        gate_input_size=HIDDEN,
        kv_shapes={},
        tasks=list(by_task),
        domains=[(domains or {}).get(task, "text") for task in by_task],
        counts=np.array([float(len(inputs)) for inputs in by_task.values()]),
        sums=np.array([inputs.sum(axis=0) for inputs in by_task.values()]),
        squares=np.array([(inputs**2).sum(axis=0) for inputs in by_task.values()]),
        scores={task: AnswerScore(1.0, 1, 1, 1) for task in by_task},
        data_counts=DataCounts(),
    )


def separated(num_tasks: int, num_examples: int, seed: int) -> dict[str, Float]:
    """Draw inputs of tasks with distinct means, which do not depend on the seed, and very different features."""
    centres = np.random.default_rng(99).normal(size=(num_tasks, HIDDEN)) * 3
    units = np.geomspace(0.01, 100, HIDDEN)
    rng = np.random.default_rng(seed)
    return {
        f"task {task}": (centres[task] + rng.normal(size=(num_examples, HIDDEN))) * units + 5 * units
        for task in range(num_tasks)
    }


def moments_of(by_task: dict[str, Float], statistics: GateStatistics, projection: Float) -> Float:
    inputs = (np.concatenate(list(by_task.values())) - statistics.mean) / statistics.scale @ projection.T
    return np.asarray(inputs.T @ inputs)


def loaded_gate(spec: MixtureSpec, values: Arrays, strict: bool = True) -> Gate:
    """Return the gate that clients run, with the values of the arrays."""
    gate = Gate(spec)
    own = {name.removeprefix("gate."): torch.from_numpy(array) for name, array in values.items() if "gate." in name}
    gate.load_state_dict(own, strict=strict)
    return gate


def log_weights(gate: Gate, inputs: Float) -> torch.Tensor:
    result: torch.Tensor = gate(torch.from_numpy(inputs).float(), torch.full((len(inputs),), UNKNOWN_TASK))
    return result


def random_gate(seed: int) -> tuple[dict[str, Float], Float, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    gate = {name: rng.normal(size=size) for name, size in SPEC.trainable().items() if name.startswith("gate.")}
    return gate, rng.normal(size=(7, HIDDEN)), rng.integers(4, size=7)


def test_gradients_equal_finite_differences() -> None:
    gate, inputs, targets = random_gate(0)
    _, gradients = gate_loss(gate, inputs, targets, temperature=0.7)
    step = 1e-5
    for name, values in gate.items():
        for index in np.ndindex(values.shape):
            losses = []
            for sign in (1, -1):
                moved = values.copy()
                moved[index] += sign * step
                losses.append(gate_loss(gate | {name: moved}, inputs, targets, 0.7)[0])
            # The error of central differences is step**2 times a third derivative of about 1, and rounding / step.
            assert gradients[name][index] == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-8), name


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_loss_and_gradients_equal_those_of_the_gate_that_clients_run(temperature: float) -> None:
    values, inputs, targets = random_gate(1)
    loss, gradients = gate_loss(values, inputs, targets, temperature)
    gate = loaded_gate(replace(SPEC, temperature=temperature), values, strict=False)
    nll = torch.nn.functional.nll_loss(log_weights(gate, inputs), torch.from_numpy(targets))
    nll.backward()
    # The client's gate is float32, as are the sums of 12 products in it.
    assert loss == pytest.approx(nll.item(), rel=1e-5)
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(gradients[f"gate.{name}"], parameter.grad.numpy(), atol=1e-5, err_msg=name)


def test_summed_statistics_equal_those_of_the_pooled_inputs() -> None:
    first, second = separated(3, 20, seed=1), separated(2, 7, seed=2)
    domains = {"task 0": "z", "task 1": "a", "task 2": "a"}
    statistics = sum_statistics([reply(0, first, domains), reply(1, second, domains)])
    assert statistics.tasks == ("task 1", "task 2", "task 0")  # by domain, then name
    assert statistics.counts.tolist() == [27, 20, 27]
    for row, task in enumerate(statistics.tasks):
        pooled = np.concatenate([inputs[task] for inputs in (first, second) if task in inputs])
        np.testing.assert_allclose(statistics.sums[row], pooled.sum(axis=0), rtol=1e-12)
        np.testing.assert_allclose(statistics.squares[row], (pooled**2).sum(axis=0), rtol=1e-12)
    everything = np.concatenate([*first.values(), *second.values()])
    np.testing.assert_allclose(statistics.mean, everything.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.scale, everything.std(axis=0), rtol=1e-9)  # a difference of squares


def test_the_order_of_clients_does_not_change_the_order_of_tasks() -> None:
    replies = [reply(0, separated(2, 4, seed=1)), reply(1, separated(4, 4, seed=2))]
    assert sum_statistics(replies).tasks == sum_statistics(replies[::-1]).tasks


def test_standardised_inputs_have_mean_0_and_deviation_1() -> None:
    by_task = separated(3, 50, seed=1)
    statistics = sum_statistics([reply(0, by_task)])
    arrays = standardise(initial_arrays(SPEC, np.random.default_rng(0)), statistics)
    inputs = (np.concatenate(list(by_task.values())) - arrays["gate.mean"]) / arrays["gate.scale"]
    # The statistics are rounded to float32, and the means are up to 2.5 deviations.
    np.testing.assert_allclose(inputs.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1.0, atol=1e-5)
    assert {arrays["gate.mean"].dtype, arrays["gate.scale"].dtype} == {np.dtype(np.float32)}


def test_a_feature_that_never_varies_does_not_blow_up() -> None:
    by_task = separated(2, 10, seed=1)
    for inputs in by_task.values():
        inputs[:, 3] = 1e3
    statistics = sum_statistics([reply(0, by_task)])
    arrays = standardise(initial_arrays(SPEC, np.random.default_rng(0)), statistics)
    assert np.isfinite(arrays["gate.scale"]).all()
    assert (arrays["gate.scale"] > 0).all()
    assert abs(1e3 - arrays["gate.mean"][3]) / arrays["gate.scale"][3] < 1


def test_the_covariance_within_tasks_is_that_around_the_tasks_means() -> None:
    by_task = separated(3, 50, seed=1)
    statistics = sum_statistics([reply(0, by_task)])
    moments = moments_of(by_task, statistics, np.eye(HIDDEN))
    centres = (statistics.sums / statistics.counts[:, None] - statistics.mean) / statistics.scale
    found = covariance_within(centres, statistics.counts, moments)
    around = [(inputs - inputs.mean(axis=0)) / statistics.scale for inputs in by_task.values()]
    expected = np.cov(np.concatenate(around).T, bias=True)
    expected = 0.99 * expected + 0.01 * np.trace(expected) / HIDDEN * np.eye(HIDDEN)
    np.testing.assert_allclose(found, expected, atol=1e-9)  # a difference of sums


def test_the_covariance_of_fewer_examples_than_features_can_be_drawn_from() -> None:
    by_task = separated(3, 2, seed=1)
    statistics = sum_statistics([reply(0, by_task)])
    moments = moments_of(by_task, statistics, np.eye(HIDDEN)).astype(np.float32)  # as clients send them
    centres = (statistics.sums / statistics.counts[:, None] - statistics.mean) / statistics.scale
    np.linalg.cholesky(covariance_within(centres, statistics.counts, moments))


def fitted(projection: Float, temperature: float, seed: int) -> tuple[Arrays, Arrays, GateStatistics]:
    """Return the mixture before and after the fit, and the statistics of two clients that share tasks."""
    first, second = separated(6, 40, seed=1), separated(4, 40, seed=2)
    statistics = sum_statistics([reply(0, first), reply(1, second)])
    moments = moments_of(first, statistics, projection) + moments_of(second, statistics, projection)
    rng = np.random.default_rng(seed)
    before = standardise(initial_arrays(SPEC, rng), statistics)
    centres = (statistics.sums / statistics.counts[:, None] - before["gate.mean"]) / before["gate.scale"] @ projection.T
    experts = dealt(statistics.tasks, SPEC.num_experts)
    after = fit_input_gate(before, centres, statistics.counts, experts, moments, projection, temperature, rng)
    return before, after, dict(zip(statistics.tasks, experts, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("num_features", [HIDDEN, 8])
def test_the_fitted_gate_sends_new_inputs_of_each_task_to_its_expert(temperature: float, num_features: int) -> None:
    projection = np.random.default_rng(7).normal(0.0, num_features**-0.5, (num_features, HIDDEN))
    before, arrays, experts = fitted(np.eye(HIDDEN) if num_features == HIDDEN else projection, temperature, seed=0)
    gate = loaded_gate(replace(SPEC, temperature=temperature), arrays)
    new = separated(6, 100, seed=3)
    correct = [
        (log_weights(gate, new[task]).argmax(dim=1).numpy() == expert).mean() for task, expert in experts.items()
    ]
    assert np.mean(correct) > 0.95, correct
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    for name in before:
        assert name.startswith(("gate.hidden", "gate.output")) or arrays[name] is before[name]


def test_the_fit_is_deterministic() -> None:
    first, again, other = (fitted(np.eye(HIDDEN), 1.0, seed)[1]["gate.output.weight"].tobytes() for seed in (5, 5, 6))
    assert first == again != other
