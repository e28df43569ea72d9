"""Every family of decoders: the mixture computes the same thing whatever the architecture around it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, REFUSED, family_backbone, family_model
from tiny import CPU, batch_of, byte_tokenizer, examples, logits_of, mixture_for, tokenized

from common.answer_loss import answer_nll
from common.backbone import load_backbone
from common.batches import collate
from common.decoder import forward, hidden_at, probe_kv_shapes
from common.injection import PromptedBackbone

# float32 sums of about a hundred terms, in another order by another kernel; measured 5e-5 on logits of size 1 to 10.
FLOAT32 = {"rtol": 1e-4, "atol": 2e-4}
LAYER = 2
BOTH_FORMS = pytest.mark.parametrize("form", ["kv", "hidden"])
every_family = pytest.mark.parametrize("family", FAMILIES)


def prompted_family(family: str, form: str = "kv") -> PromptedBackbone:
    backbone = family_backbone(family)
    scale = 10.0 if form == "kv" else 50.0
    return PromptedBackbone(backbone, mixture_for(backbone, layer=LAYER, scale=scale, seed=1, form=form))


@every_family
def test_no_prompts_is_the_backbone_exactly(family: str) -> None:
    """As transformers runs it by default; Gemma 2's softcap and gpt-oss's sinks are in its eager attention alone."""
    batch, plain = batch_of(), family_model(family)
    prompted = prompted_family(family)
    for texts in (batch, collate(tokenized(examples(1)), 2, CPU)):
        expected = plain(
            input_ids=texts.input_ids,
            attention_mask=texts.attention_mask,
            position_ids=(texts.attention_mask.cumsum(1) - 1).clamp_min(0),
        ).logits[:, -texts.num_logits :]
        found = forward(prompted.backbone, texts.input_ids, texts.attention_mask, texts.num_logits)
        assert torch.equal(found, expected.float())
    assert not torch.allclose(
        logits_of(prompted, batch)[0],
        forward(prompted.backbone, batch.input_ids, batch.attention_mask, batch.num_logits),
        atol=0.01,
    )


@BOTH_FORMS
@every_family
def test_gradients_equal_finite_differences(family: str, form: str) -> None:
    """Along the gradient itself, where the derivative is the gradient's norm."""
    prompted, batch = prompted_family(family, form), batch_of()
    parameters = list(prompted.mixture.parameters())

    def loss() -> torch.Tensor:
        return answer_nll(logits_of(prompted, batch)[0], batch.labels).mean()

    gradients = torch.autograd.grad(loss(), parameters)
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
    step = 1e-3 / norm.item()
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += sign * step * gradient / norm
            losses.append(loss().double().item())
    # Rounding of the losses, about 1e-6, over a difference of 2e-3; and the curvature's change over the step.
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm.item(), rel=0.01)


@BOTH_FORMS
@every_family
def test_padding_changes_nothing(family: str, form: str) -> None:
    prompted, texts = prompted_family(family, form), tokenized(examples(3))
    batch = collate(texts, 2, CPU)
    assert not batch.attention_mask.all()
    logits, log_weights = logits_of(prompted, batch)
    for row, text in enumerate(texts):
        single = collate([text], 2, CPU)
        alone, weights_alone = logits_of(prompted, single)
        torch.testing.assert_close(logits[row, -single.num_logits :], alone[0], **FLOAT32)
        torch.testing.assert_close(log_weights[row], weights_alone[0], **FLOAT32)


@every_family
def test_cached_hidden_states_equal_fresh_ones(family: str) -> None:
    prompted, batch = prompted_family(family), batch_of()
    hidden = hidden_at(prompted.backbone, LAYER, batch.input_ids, batch.attention_mask)
    fresh, weights = logits_of(prompted, batch)
    cached, cached_weights = prompted.logits(replace(batch, hidden=hidden))
    assert torch.equal(cached, fresh)
    assert torch.equal(cached_weights, weights)
    changed, _ = prompted.logits(replace(batch, hidden=hidden.flip(-1)))
    assert not torch.allclose(changed, fresh, atol=1e-3)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_without_the_interface_is_refused_by_name(family: str, tmp_path: Path) -> None:
    family_model(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    name = {"bloom": "Bloom", "gptj": "GPTJ", "falcon": "Falcon"}[family]
    with pytest.raises(
        ValueError, match=rf"{name}ForCausalLM does not pass its attention .*choose another family"
    ) as e:
        probe_kv_shapes(load_backbone(str(tmp_path), "none", "cpu"), LAYER)
    assert "\n" not in str(e.value)


def test_an_unknown_family_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llamma", "architectures": ["LlammaForCausalLM"]}')
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the family 'llamma' .* is not known to transformers") as e:
        load_backbone(str(tmp_path), "none", "cpu")
    assert "\n" not in str(e.value)
