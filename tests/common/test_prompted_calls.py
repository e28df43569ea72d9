"""A call of a model with a mixture is a pass of ours, whole or in steps; what cannot be is refused in one line."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_tiny import FLOAT32, TASKS, inputs_of, kinds, loaded, peft_warns, prompts_of, saved, tiny_mixture
from tiny import (
    CPU,
    batch_of,
    examples,
    tiny_backbone,
    tiny_llama,
    tokenized,
)

from common.answer_loss import answer_nll
from common.batches import IGNORED, Batch, collate
from common.injection import PromptedBackbone
from common.peft_config import MixtureConfig

pytestmark = peft_warns


@kinds
def test_forward_is_the_prompted_backbone(tmp_path, kind):
    model, mixture = loaded(tmp_path, kind)
    batch = batch_of(5)
    with torch.no_grad():
        expected, log_weights = PromptedBackbone(tiny_backbone(), mixture).logits(batch)
        output = model(**inputs_of(batch), tasks=batch.tasks)
    torch.testing.assert_close(output.logits[:, -batch.num_logits :], expected, **FLOAT32)
    assert torch.equal(model.expert_weights, log_weights.exp())
    expected_loss = answer_nll(expected, batch.labels).sum() / (batch.labels != IGNORED).sum()
    assert float(output.loss) == pytest.approx(float(expected_loss), rel=1e-5)


@kinds
def test_gradients_are_those_of_the_prompted_backbone(tmp_path, kind):
    mixture = tiny_mixture(kind)
    model = PeftModel.from_pretrained(tiny_llama(), saved(tmp_path, mixture), is_trainable=True)
    batch = batch_of(5)
    model(**inputs_of(batch), tasks=batch.tasks).loss.backward()
    logits, _ = PromptedBackbone(tiny_backbone(), mixture).logits(batch)
    (answer_nll(logits, batch.labels).sum() / (batch.labels != IGNORED).sum()).backward()
    own = dict(model.base_model.prompt_mixture["default"].named_parameters())
    for name, parameter in mixture.named_parameters():
        assert own[name].requires_grad == parameter.requires_grad == (name in mixture.spec.trainable()), name
        if parameter.grad is not None:
            torch.testing.assert_close(own[name].grad, parameter.grad, **FLOAT32)
            assert parameter.grad.any()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.prompt_mixture.default.{name}" for name in mixture.spec.trainable()}


@pytest.mark.parametrize("kind", ["plain", "hidden", "answer"])
def test_padding_on_either_side_changes_nothing(tmp_path, kind):
    model, _ = loaded(tmp_path, kind)
    texts = tokenized(examples(4))
    assert len({text.num_tokens for text in texts}) > 1
    for pad, labelled in ((2, True), (2, False), (77, True)):  # 77 is no special token: only the mask hides it
        inputs = inputs_of(collate(texts, pad, CPU))
        padding = (inputs["attention_mask"] == 0).sum(1)
        turned = {
            name: torch.stack([row.roll(-int(count)) for row, count in zip(rows, padding, strict=True)])
            for name, rows in inputs.items()
        }
        if not labelled:
            del inputs["labels"], turned["labels"]
        with torch.no_grad():
            left, left_weights = model(**inputs).logits, model.expert_weights
            right, right_weights = model(**turned).logits, model.expert_weights
            torch.testing.assert_close(left_weights, right_weights, **FLOAT32)
            for row, text in enumerate(texts):
                ids = torch.tensor([text.prompt_ids + text.answer_ids])
                alone = {"labels": inputs["labels"][row : row + 1, -text.num_tokens :]} if labelled else {}
                logits = model(ids, **alone).logits[0]
                torch.testing.assert_close(left[row, -text.num_tokens :], logits, **FLOAT32)
                torch.testing.assert_close(right[row, : text.num_tokens], logits, **FLOAT32)


def test_the_gate_reads_neither_labels_nor_what_follows_them(tmp_path):
    model, _ = loaded(tmp_path)
    inputs = inputs_of(batch_of(1))
    length = inputs["input_ids"].shape[1]
    first = int((inputs["labels"][0] != IGNORED).int().argmax())
    inputs["labels"][0, -1] = IGNORED  # as of a second question
    weights = []
    for position in (None, first, length - 1, first - 1):
        others = inputs["input_ids"].clone()
        if position is not None:
            others[0, position] = 3 + (others[0, position] + 7) % 250
        model(**(inputs | {"input_ids": others}))
        weights.append(model.expert_weights)
    assert [torch.equal(weights[0], changed) for changed in weights[1:]] == [True, True, False]


def test_tokens_that_the_configuration_calls_special_are_not_read(tmp_path):
    model, mixture = loaded(tmp_path)
    ids = prompts_of(1)[2][0]
    specials = [0, 1, 2, int(ids[0, 5])]
    config = MixtureConfig.from_pretrained(tmp_path)
    config.special_token_ids = specials
    other = PeftModel.from_pretrained(tiny_llama(), tmp_path, config=config)
    with torch.no_grad():
        model(ids)
        other(ids)
        read = torch.isin(ids, torch.tensor(specials), invert=True).long()
        batch = Batch(ids, torch.ones_like(ids), read, torch.zeros(1, 0, dtype=torch.long), ("",))
        expected = PromptedBackbone(tiny_backbone(), mixture).logits(batch)[1].exp()
    assert torch.equal(other.expert_weights, expected)
    assert not torch.allclose(model.expert_weights, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "hidden", "answer"])
def test_a_text_in_steps_is_the_text_at_once(tmp_path, kind):
    """The gate reads the first step; later ones go on from the cache with its weights."""
    model, mixture = loaded(tmp_path, kind)
    batch = batch_of(3)
    start = batch.input_ids.shape[1] - batch.labels.shape[1]
    read = batch.attention_mask * (batch.input_ids > 2)
    read[:, start:] = 0
    labels = batch.input_ids[:, start:]
    with torch.no_grad():
        whole = Batch(batch.input_ids, batch.attention_mask, read, labels, ("",) * 3)
        expected, _ = PromptedBackbone(tiny_backbone(), mixture).logits(whole)
        output = model(batch.input_ids[:, :start], batch.attention_mask[:, :start], use_cache=True)
        logits = [output.logits[:, -1:]]
        for position in range(start, batch.input_ids.shape[1]):
            output = model(
                batch.input_ids[:, position : position + 1],
                batch.attention_mask[:, : position + 1],
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **FLOAT32)


def test_calls_that_cannot_be_are_errors(tmp_path):
    model, _ = loaded(tmp_path, "both")
    ids = prompts_of(1)[2][0]
    two = ids.repeat(2, 1)
    filled = model(ids, use_cache=True).past_key_values
    with model.disable_adapter():
        foreign = model(ids, use_cache=True).past_key_values
    embeddings = model.get_input_embeddings()(ids)
    for message, call in (
        ("tasks must name one task for each of 2 texts, got 1", lambda: model(two, tasks=["turn"])),
        (
            "tasks must name one task for each of 2 texts, got 3",
            lambda: model.generate(two, tasks=TASKS, max_new_tokens=2),
        ),
        (
            "tasks must name one task for each of 2 texts, got 0",
            lambda: model.generate(two, tasks=[], max_new_tokens=2),
        ),
        ("text 0 has nothing that the gate may read", lambda: model(ids, labels=ids)),
        ("text 0 has nothing that the gate may read", lambda: model(ids[:, :1])),
        ("input_ids are missing", lambda: model(inputs_embeds=embeddings)),
        ("not read by this mixture", lambda: model(ids[:, :1], past_key_values=foreign)),
        ("the cache holds 1 texts, but 2 go on", lambda: model(two[:, :1], past_key_values=filled)),
        ("leave out prefill_chunk_size", lambda: model.generate(ids, prefill_chunk_size=4, max_new_tokens=2)),
        ("leave out a cache_impl", lambda: model.generate(ids, cache_implementation="static", max_new_tokens=2)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert model(two, tasks=["turn", "turn"]).logits.isfinite().all()


def test_gradient_checkpointing_is_refused_for_training(tmp_path):
    model = get_peft_model(tiny_llama(), MixtureConfig(num_experts=3))
    model.get_base_model().activation_checkpointing_enable()
    batch = batch_of(2)
    model(**inputs_of(batch))
    with pytest.raises(ValueError, match="gradient checkpointing would run layers again without their prompts"):
        model.train()(**inputs_of(batch))
