"""Which weights go: so many of a layer, of each row, of each four, and always those of the smallest scores."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from simulations.compression.masks import prune_by_inputs, prune_by_magnitude


def drawn(kind=nn.Linear, num_in=24, num_out=10, seed=0):
    """Draw a linear layer, and norms of its inputs that change which weights are small."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(num_in, num_out) if kind is nn.Linear else Conv1D(num_out, num_in)
    linear.weight.data = torch.randn(linear.weight.shape, generator=generator)
    return linear.requires_grad_(False), torch.rand(num_in, generator=generator).double() * 5 + 0.01


def wanda_by_hand(weight, norms, count, group):
    """Zero, one row and one group at a time, the `count` weights of the smallest |w| * norm, in Python's float64."""
    rows = weight.double().tolist()
    for row in rows:
        for start in range(0, len(row), group):
            scores = [(abs(row[place]) * float(norms[place]), place) for place in range(start, start + group)]
            for _, place in sorted(scores)[:count]:
                row[place] = 0.0
    return torch.tensor(rows)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
def test_magnitude_takes_the_smallest_of_the_whole_layer(sparsity):
    linear, _ = drawn()
    before = linear.weight.clone()
    prune_by_magnitude(linear, sparsity)
    zero = linear.weight == 0
    assert int(zero.sum()) == round(sparsity * before.numel())
    assert before[zero].abs().max() < before[~zero].abs().min()
    assert torch.equal(linear.weight[~zero], before[~zero])
    assert set(linear.state_dict()) == {"weight", "bias"} and not linear._forward_pre_hooks


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(("sparsity", "count"), [(0.5, 12), (0.25, 6), (0.3, 7), (0.99, 24)])
def test_wanda_equals_the_slow_reference_in_every_row(kind, sparsity, count):
    linear, norms = drawn(kind)
    rows = linear.weight.T.clone() if kind is Conv1D else linear.weight.clone()
    prune_by_inputs(linear, norms, "wanda", sparsity)
    pruned = linear.weight.T if kind is Conv1D else linear.weight
    assert pruned.eq(0).sum(dim=1).tolist() == [count] * len(pruned)
    assert torch.equal(pruned.double(), wanda_by_hand(rows, norms, count, group=24))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_two_of_every_four_inputs_go(kind):
    linear, norms = drawn(kind)
    rows = linear.weight.T.clone() if kind is Conv1D else linear.weight.clone()
    prune_by_inputs(linear, norms, "2:4", 0.5)
    pruned = linear.weight.T if kind is Conv1D else linear.weight
    assert pruned.unflatten(1, (-1, 4)).eq(0).sum(dim=-1).eq(2).all()
    assert torch.equal(pruned.double(), wanda_by_hand(rows, norms, 2, group=4))


def test_without_the_norms_other_weights_go():
    by_inputs, norms = drawn()
    by_weights, _ = drawn()
    prune_by_inputs(by_inputs, norms, "wanda", 0.5)
    prune_by_inputs(by_weights, torch.ones_like(norms), "wanda", 0.5)
    assert not torch.equal(by_inputs.weight == 0, by_weights.weight == 0)


def test_of_equal_scores_the_first_go():
    linear, norms = drawn()
    linear.weight.fill_(1.0)
    prune_by_inputs(linear, torch.ones_like(norms), "2:4", 0.5)
    assert torch.equal(linear.weight[0], torch.tensor([0.0, 0.0, 1.0, 1.0] * 6))


def test_2_4_wants_a_multiple_of_four_inputs():
    linear, norms = drawn(num_in=10)
    with pytest.raises(ValueError, match="has 10 inputs, but 2:4 needs a multiple of 4: choose"):
        prune_by_inputs(linear, norms, "2:4", 0.5)
