"""The past of an answer: passes that go on from it give what passes over whole texts give, in every family."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, family_backbone
from tiny import CPU, examples, logits_of, mixture_for, tiny_backbone, tiny_prompted, tokenized

from common.answer_loss import answer_nll
from common.batches import TokenizedExample, collate
from common.decoder import decoder_layers, probe_kv_shapes
from common.injection import PromptedBackbone
from common.past import compute_past, past_width

FLOAT32 = {"rtol": 1e-4, "atol": 2e-5}  # sums of about a hundred terms, in another order
TEXTS = tokenized(examples(4))


def prompted_family(family, form):
    backbone = family_backbone(family)
    scale = 10.0 if form == "kv" else 50.0
    return PromptedBackbone(
        backbone, mixture_for(backbone, layer=2, scale=scale, seed=1, form=form, positions="answer")
    )


@pytest.mark.parametrize("form", ["kv", "hidden"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_whole_texts(family, form):
    prompted = prompted_family(family, form)
    batch = collate(TEXTS, 2, CPU)
    found = []
    for some in (batch, prompted.with_states(batch)):
        logits, log_weights = prompted.logits(some)
        gradients = torch.autograd.grad(answer_nll(logits, batch.labels).sum(), list(prompted.mixture.parameters()))
        found.append((logits, log_weights, *gradients))
    for whole, gone_on in zip(*found, strict=True):
        torch.testing.assert_close(gone_on, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("layer", [0, 2])
def test_a_pass_runs_the_answers_and_no_more(layer):
    prompted = tiny_prompted(layer=layer, positions="answer")
    batch = prompted.with_states(collate(TEXTS, 2, CPU))
    lengths = []
    for decoder_layer in decoder_layers(prompted.backbone.model)[2:]:
        decoder_layer.mlp.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    logits_of(prompted, batch)
    assert lengths == [max(len(text.answer_ids) for text in TEXTS) + 1] * 2


def test_past_in_texts_is_the_batchs_own():
    """A row for each token of the prompt but its last, wherever answers of other texts begin."""
    prompted = tiny_prompted(positions="answer")
    kv_shapes = prompted.mixture.spec.kv_shapes
    with_past = []
    for text in TEXTS:
        alone = prompted.with_states(collate([replace(text, answer_ids=[])], 2, CPU))
        assert alone.past.shape == (1, len(text.prompt_ids) - 1, past_width(kv_shapes))
        with_past.append(replace(text, past=alone.past[0]))
    assert len({len(text.answer_ids) for text in TEXTS}) > 1
    together = collate(with_past, 2, CPU)
    expected = prompted.with_states(collate(TEXTS, 2, CPU))
    real = expected.attention_mask[:, : expected.past.shape[1], None].bool()
    torch.testing.assert_close(together.past, expected.past * real, **FLOAT32)
    assert [text.num_computed for text in with_past] == [len(text.answer_ids) + 1 for text in TEXTS]
    torch.testing.assert_close(logits_of(prompted, together)[0], logits_of(prompted, expected)[0], **FLOAT32)
    assert collate([with_past[0], TEXTS[1]], 2, CPU).past is None


def test_prompts_of_one_token_have_an_empty_past():
    prompted = tiny_prompted(positions="answer")
    texts = [TokenizedExample([7], [8, 9, 1], [False]), TokenizedExample([10], [11, 12, 1], [False])]
    batch = collate(texts, 2, CPU)
    known = prompted.with_states(batch)
    assert known.past.shape[1] == 0
    torch.testing.assert_close(logits_of(prompted, known)[0], logits_of(prompted, batch)[0], **FLOAT32)


def test_a_past_of_another_prompt_is_refused():
    with pytest.raises(ValueError, match="a past of 3 is not that of 3 prompt tokens"):
        TokenizedExample([7, 8, 9], [1], [False] * 3, past=torch.zeros(3, 4))


def test_past_sees_no_prompts():
    backbone = tiny_backbone()
    shapes = probe_kv_shapes(backbone, 2)
    prompted = PromptedBackbone(backbone, mixture_for(backbone, positions="answer"))
    inside = prompted.with_states(collate(TEXTS, 2, CPU))
    prompted.remove()
    assert torch.equal(inside.past, compute_past(backbone, shapes, inside))
