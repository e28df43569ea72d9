"""Gates by input, by task and by both, top-k and the shared expert, against weights written out in float64."""

import numpy as np
import pytest
import torch

from common.mixture import UNKNOWN_TASK, Mixture
from common.mixture_arrays import initial_arrays
from common.mixture_spec import GATE_STATISTICS, MixtureSpec

TASKS = ("add", "sort", "turn")
INPUTS = torch.from_numpy(np.random.default_rng(5).normal(size=(4, 6)))
IDS = torch.tensor([2, UNKNOWN_TASK, 0, 0])


def spec_with(**changes):
    sizes = {"num_experts": 5, "tokens_per_expert": 2, "gate_hidden_size": 7, "hidden_size": 6}
    return MixtureSpec(**(sizes | {"kv_shapes": {1: (1, 2, 2)}, "tasks": TASKS, "task_embedding_size": 3} | changes))


def mixture_with(**changes):
    """Draw all values of a mixture in float64, so that only mathematics can differ."""
    spec = spec_with(**changes)
    mixture = Mixture(spec).double()
    rng = np.random.default_rng(1)
    for name, tensor in mixture.state_dict().items():
        drawn = rng.normal(size=tensor.shape)
        tensor.copy_(torch.from_numpy(abs(drawn) + 0.5 if name == "gate.scale" else drawn))
    return mixture


def input_logits(values, row):
    x = (INPUTS[row].numpy() - values["gate.mean"]) / values["gate.scale"]
    hidden = np.tanh(values["gate.hidden.weight"] @ x + values["gate.hidden.bias"])
    return values["gate.output.weight"] @ hidden + values["gate.output.bias"]


def task_logits(values, task):
    asked = values["gate.query.weight"] @ values["gate.task_embeddings"][task]
    return np.array([asked @ key for key in values["gate.expert_keys"]])


def weights_by_hand(mixture):
    """Write out the weights of the gated experts, `[batch, gated]`."""
    spec, values = mixture.spec, {name: tensor.numpy() for name, tensor in mixture.state_dict().items()}
    rows = []
    for row, task in enumerate(IDS.tolist()):
        logits = np.zeros(spec.num_gated)
        if spec.gate != "task" or task == UNKNOWN_TASK:
            logits = logits + input_logits(values, row)
        if spec.gate != "input" and task != UNKNOWN_TASK:
            logits = logits + task_logits(values, task)
        odds = np.exp(logits / spec.temperature)
        if spec.top_k:
            odds[np.argsort(odds)[: -spec.top_k]] = 0.0
        rows.append(odds / odds.sum())
    return np.array(rows)


@pytest.mark.parametrize("gate", ["input", "task", "both"])
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.6}, {"top_k": 2}, {"top_k": 3, "shared_expert": True}])
def test_weights_equal_those_written_out(gate, changes):
    mixture = mixture_with(gate=gate, **changes)
    weights = mixture.log_weights(INPUTS, IDS).exp().detach().numpy()
    expected = weights_by_hand(mixture)
    if changes.get("shared_expert"):
        expected = np.concatenate([expected, np.ones((4, 1))], axis=1)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("gate", ["task", "both"])
def test_a_task_without_an_embedding_goes_by_its_input_alone(gate):
    mixture, by_input = mixture_with(gate=gate), mixture_with(gate="input")
    by_input.load_state_dict({name: mixture.state_dict()[name] for name in by_input.state_dict()})
    unknown = torch.full((4,), UNKNOWN_TASK)
    assert torch.equal(mixture.log_weights(INPUTS, unknown), by_input.log_weights(INPUTS, unknown))
    known = torch.zeros(4, dtype=torch.long)
    assert not torch.allclose(mixture.log_weights(INPUTS, known), by_input.log_weights(INPUTS, known))


def test_by_task_the_input_of_a_known_task_does_not_matter():
    mixture = mixture_with(gate="task")
    ids = torch.tensor([2, 1, 0, 0])
    assert torch.equal(mixture.log_weights(INPUTS, ids), mixture.log_weights(INPUTS.flip(0), ids))


def test_tasks_have_the_rows_of_the_spec():
    mixture = mixture_with(gate="task")
    assert mixture.task_ids(["turn", "??", "add", "add"], torch.device("cpu")).tolist() == IDS.tolist()


# --- Top-k ---


@pytest.mark.parametrize("gate", ["input", "task", "both"])
def test_the_k_largest_keep_their_odds_and_the_others_have_exactly_no_weight(gate):
    all_weights = mixture_with(gate=gate).log_weights(INPUTS, IDS).exp()
    kept = mixture_with(gate=gate, top_k=2).log_weights(INPUTS, IDS).exp()
    for before, after in zip(all_weights, kept, strict=True):
        chosen = before.argsort()[-2:]
        assert (after > 0).sum() == 2 and (after[chosen] > 0).all()
        torch.testing.assert_close(after[chosen[0]] / after[chosen[1]], before[chosen[0]] / before[chosen[1]])
    torch.testing.assert_close(kept.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_top_k_of_all_changes_nothing():
    plain = mixture_with().log_weights(INPUTS, IDS)
    assert torch.equal(mixture_with(top_k=5).log_weights(INPUTS, IDS), plain)


@pytest.mark.parametrize("gate", ["input", "task", "both"])
def test_gradients_past_top_k_are_finite(gate):
    mixture = mixture_with(gate=gate, top_k=1, shared_expert=True)
    weights = mixture.log_weights(INPUTS, IDS).exp()
    (weights * torch.arange(20.0).view(4, 5)).sum().backward()
    for name, parameter in mixture.named_parameters():
        if name.startswith("gate.") and parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name


# --- The shared expert ---


@pytest.mark.parametrize("top_k", [0, 1])
def test_the_shared_expert_is_the_last_and_always_on(top_k):
    weights = mixture_with(shared_expert=True, top_k=top_k).log_weights(INPUTS, IDS).exp()
    assert weights.shape == (4, 5)
    assert torch.equal(weights[:, -1], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(weights[:, :-1].sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_the_gate_has_no_row_for_the_shared_expert():
    spec = spec_with(shared_expert=True, gate="both")
    shapes = spec.trainable()
    assert spec.num_gated == 4
    assert shapes["gate.output.weight"] == (4, 7) and shapes["gate.expert_keys"] == (4, 3)
    assert all(dimensions[0] == 5 for name, dimensions in shapes.items() if name.startswith("pool."))


# --- What is trained, and what travels ---

INPUT_GATE = {"gate.hidden.weight", "gate.hidden.bias", "gate.output.weight", "gate.output.bias"}
TASK_GATE = {"gate.task_embeddings", "gate.query.weight", "gate.expert_keys"}


@pytest.mark.parametrize(("gate", "up"), [("input", INPUT_GATE), ("task", TASK_GATE), ("both", INPUT_GATE | TASK_GATE)])
def test_a_gate_sends_up_what_it_trains_and_gets_down_what_it_needs(gate, up):
    mixture = mixture_with(gate=gate)
    assert {name for name in mixture.spec.trainable() if name.startswith("gate.")} == up
    assert {name for name in mixture.spec.all() if name.startswith("gate.")} == up | INPUT_GATE | {*GATE_STATISTICS}
    assert mixture.float().trained_arrays().keys() == mixture.spec.trainable().keys()
    assert mixture.state_dict().keys() == mixture.spec.all().keys()
    mixture.log_weights(INPUTS.float(), IDS)[:, 0].sum().backward()
    with_gradient = {name for name, parameter in mixture.named_parameters() if parameter.grad is not None}
    assert with_gradient == up


def test_an_input_gate_that_serves_unknown_tasks_only_begins_even():
    mixture = Mixture(spec_with(gate="task"))
    mixture.load_arrays(initial_arrays(mixture.spec, np.random.default_rng(0)))
    weights = mixture.log_weights(INPUTS.float(), torch.full((4,), UNKNOWN_TASK)).exp()
    torch.testing.assert_close(weights, torch.full((4, 5), 0.2))


def test_first_expert_keys_are_orthonormal_as_far_as_they_fit():
    keys = initial_arrays(spec_with(gate="task", task_embedding_size=8), np.random.default_rng(0))["gate.expert_keys"]
    np.testing.assert_allclose(keys @ keys.T, np.eye(5), atol=1e-6)
    keys = initial_arrays(spec_with(gate="task", task_embedding_size=3), np.random.default_rng(0))["gate.expert_keys"]
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1.0, rtol=1e-6)
