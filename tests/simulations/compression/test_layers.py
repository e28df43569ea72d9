"""Layers in order: the norms of each are those of inputs that came through the pruned layers below it."""

import copy

import pytest
import torch
from families import family_backbone
from tiny import LAYERS, examples, tiny_backbone, tokenized
from torch import nn

from common.decoder import decoder_layers, linear_layers, weight_by_rows
from simulations.compression.layers import prune_in_order
from simulations.compression.masks import prune_by_inputs
from simulations.compression.tokenized import unpadded_batches


def pruned_with_norms(backbone, texts):
    """Prune by 2:4; return the norms that each linear layer was pruned by, in order."""
    seen = []

    def prune(linear, norms):
        seen.append((linear, norms))
        prune_by_inputs(linear, norms, "2:4", 0.5)

    prune_in_order(backbone, unpadded_batches(texts, backbone), prune, lambda share: None)
    return seen


def norms_by_hand(model, texts, linear):
    """Sum the squares of what reaches a linear layer, text by text and token by token, in a float64 model."""
    total = torch.zeros(weight_by_rows(linear).shape[1], dtype=torch.float64)

    def add(module, args):
        for token in args[0].reshape(-1, args[0].shape[-1]):
            total.add_(token**2)

    hook = linear.register_forward_pre_hook(add)
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([text.prompt_ids + text.answer_ids]), use_cache=False)
    hook.remove()
    return total.sqrt()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
def test_norms_are_those_of_inputs_from_pruned_layers(family):
    backbone, texts = family_backbone(family), tokenized(examples(7))
    reference = copy.deepcopy(backbone.model).double()  # whole; pruned below, a layer behind the fast one
    seen = iter(pruned_with_norms(backbone, texts))
    layers = (decoder_layers.__wrapped__(model) for model in (backbone.model, reference))
    for layer, whole in zip(*layers, strict=True):
        expected = {name: norms_by_hand(reference, texts, linear) for name, linear in linear_layers(whole).items()}
        for name, linear in linear_layers(layer).items():
            got_for, got = next(seen)
            assert got_for is linear
            # A float32 model of four layers against a float64 one.
            torch.testing.assert_close(got, expected[name], rtol=1e-3, atol=1e-3)
            weight_by_rows(linear_layers(whole)[name]).copy_(weight_by_rows(linear))
    assert next(seen, None) is None


def test_the_layers_below_matter():
    """The test above could pass with norms of the whole model, were pruning too weak to show."""
    backbone, texts = tiny_backbone(), tokenized(examples(7))
    reference = copy.deepcopy(backbone.model).double()
    seen = pruned_with_norms(backbone, texts)
    whole = linear_layers(decoder_layers.__wrapped__(reference)[LAYERS - 1])
    expected = norms_by_hand(reference, texts, whole["mlp.down_proj"])
    assert float((seen[-1][1] - expected).norm() / expected.norm()) > 0.1


def test_texts_are_batched_without_padding_and_each_once():
    texts = tokenized(examples(40))
    batches = unpadded_batches(texts, tiny_backbone())
    assert all(batch.attention_mask.all() for batch in batches)
    rows = [row for batch in batches for row in batch.input_ids.tolist()]
    assert sorted(rows) == sorted(text.prompt_ids + text.answer_ids for text in texts)
    assert len(batches) < len(texts)


def test_no_hook_is_left_behind():
    backbone = tiny_backbone()
    pruned_with_norms(backbone, tokenized(examples(3)))
    assert not any(module._forward_pre_hooks for module in backbone.model.modules())


def test_a_linear_layer_that_no_text_reaches_is_named():
    backbone = tiny_backbone()
    decoder_layers.__wrapped__(backbone.model)[1].mlp.idle = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"no calibration text reaches mlp\.idle of layer 1: choose"):
        pruned_with_norms(backbone, tokenized(examples(3)))
