"""The mixture: its gate's weights, and its arrays as they travel."""

import numpy as np
import pytest
import torch
from tiny import mixture_for, tiny_backbone

from common.mixture import UNKNOWN_TASK, Gate, Mixture, mean_over_input
from common.mixture_arrays import initial_arrays
from common.mixture_spec import GATE_STATISTICS, MixtureSpec

SPEC = MixtureSpec(3, 4, 5, 6, {2: (2, 8, 7), 10: (1, 4, 4)})


def gate_with(temperature, num_experts=4):
    gate = Gate(MixtureSpec(num_experts, 4, 5, 6, SPEC.kv_shapes, temperature=temperature))
    with torch.no_grad():
        for index, parameter in enumerate(gate.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        gate.mean.copy_(torch.arange(6.0))
        gate.scale.copy_(1 + torch.arange(6.0))
    return gate


def unknown(count):
    return torch.full((count,), UNKNOWN_TASK)


def test_gate_weights_equal_a_loop():
    gate = gate_with(temperature=0.7)
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    expected = np.zeros((3, 4))
    for row in range(3):
        x = (inputs[row].double().numpy() - np.arange(6)) / (1 + np.arange(6))
        hidden = np.tanh(gate.hidden.weight.detach().numpy() @ x + gate.hidden.bias.detach().numpy())
        logits = gate.output.weight.detach().numpy() @ hidden + gate.output.bias.detach().numpy()
        odds = np.exp(logits / 0.7)
        expected[row] = odds / odds.sum()
    np.testing.assert_allclose(gate(inputs, unknown(3)).exp().detach().numpy(), expected, rtol=1e-5)  # float32


def test_weights_of_an_input_sum_to_one():
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    weights = gate_with(1.0)(inputs, unknown(50)).exp()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(50))


def test_a_lower_temperature_sharpens_and_a_high_one_evens_out():
    inputs = torch.ones(1, 6)
    weights = [gate_with(temperature)(inputs, unknown(1)).exp() for temperature in (0.01, 1.0, 1e6)]
    assert weights[0].max() > 0.999 > weights[1].max() > 0.26
    torch.testing.assert_close(weights[2], torch.full((1, 4), 0.25))
    assert all(torch.equal(w.argmax(), weights[0].argmax()) for w in weights[:2])


def test_a_vanishing_weight_gives_no_nan():
    gate = gate_with(temperature=1e-6)
    log_weights = gate(torch.ones(1, 6), unknown(1))
    (log_weights.exp() * torch.arange(4)).sum().backward()
    assert log_weights.isfinite().all() and sorted(log_weights.exp()[0].tolist()) == [0, 0, 0, 1]
    assert all(parameter.grad.isfinite().all() for parameter in gate.parameters())


def test_one_expert_has_no_gate_and_weight_one():
    mixture = mixture_for(tiny_backbone(), num_experts=1)
    assert mixture.gate is None
    assert torch.equal(mixture.log_weights(torch.randn(3, 64), unknown(3)), torch.zeros(3, 1))


@pytest.mark.parametrize("num_experts", [1, 3])
def test_names_and_shapes_are_those_of_the_spec(num_experts):
    spec = MixtureSpec(num_experts, 4, 5, 6, SPEC.kv_shapes)
    mixture = Mixture(spec)
    assert {name: tuple(p.shape) for name, p in mixture.named_parameters()} == spec.trainable()
    assert {name: tuple(t.shape) for name, t in mixture.state_dict().items()} == spec.all()
    assert {t.dtype for t in mixture.state_dict().values()} == {torch.float32}


def test_arrays_survive_the_round_trip():
    arrays = initial_arrays(SPEC, np.random.default_rng(0))
    arrays["gate.mean"] += 3
    mixture = Mixture(SPEC)
    mixture.load_arrays(arrays)
    trained = mixture.trained_arrays()
    assert trained.keys() == arrays.keys() - set(GATE_STATISTICS)
    for name, array in trained.items():
        assert array.dtype == np.float32 and np.array_equal(array, arrays[name])
    assert np.array_equal(mixture.gate.mean.numpy(), arrays["gate.mean"])


def test_trained_arrays_are_a_copy():
    mixture = Mixture(SPEC)
    before = mixture.trained_arrays()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 1
    mixture_now = mixture.trained_arrays()
    assert not any(np.array_equal(before[name], mixture_now[name]) for name in before)


@pytest.mark.parametrize("change", ["missing", "extra", "reshaped"])
def test_arrays_of_another_shape_do_not_load(change):
    arrays = initial_arrays(SPEC, np.random.default_rng(0))
    if change == "missing":
        del arrays["gate.mean"]
    elif change == "extra":
        arrays["pool.keys.3"] = arrays["pool.keys.2"]
    else:
        arrays["pool.keys.2"] = arrays["pool.keys.2"][:2]
    with pytest.raises(RuntimeError, match="Error"):
        Mixture(SPEC).load_arrays(arrays)


def test_the_mean_leaves_out_what_is_masked():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]])
    expected = torch.stack([(hidden[0, 1] + hidden[0, 2]) / 2, hidden[1, 3]])
    assert torch.equal(mean_over_input(hidden, mask), expected)
    hidden[mask == 0] = 1e9
    assert torch.equal(mean_over_input(hidden, mask), expected)


def test_the_mean_is_float32_and_passes_no_gradient():
    hidden = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    mean = mean_over_input(hidden, torch.ones(1, 200, dtype=torch.long))
    assert mean.dtype == torch.float32 and not mean.requires_grad
    torch.testing.assert_close(mean, hidden.detach().double().mean(1).float())


def test_an_input_without_tokens_has_mean_zero():
    assert torch.equal(mean_over_input(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.long)), torch.zeros(1, 3))
