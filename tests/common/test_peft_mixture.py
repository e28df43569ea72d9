"""A mixture as a peft adapter: the same numbers as ours, for trainers and for generate, and the plain backbone back."""

import copy
import importlib
import json
import logging
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, PeftType, get_peft_model
from tiny import (
    CPU,
    batch_of,
    byte_tokenizer,
    examples,
    mixture_for,
    tiny_backbone,
    tiny_llama,
    tokenized,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TextStreamer, Trainer, TrainingArguments

from common import peft_mixture
from common.answer_loss import answer_nll
from common.backbone import Backbone, load_backbone
from common.batches import IGNORED, Batch, collate
from common.fingerprint import fingerprint
from common.injection import PromptedBackbone
from common.mixture_file import CARD, WEIGHTS, card, read_mixture, weights_bytes
from common.peft_config import MixtureConfig

# peft 0.21.2 asks transformers 5.23 by a name that goes in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# float32 sums of about a hundred terms, in another order by another kernel; measured 2e-5 on logits of size 1 to 10.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-4}
TASKS = ("count", "shout", "turn")
KINDS = {
    "plain": {},
    "both": {"gate": "both", "tasks": TASKS},
    "task": {"gate": "task", "tasks": TASKS, "learned_task_weights": True},
    "hidden": {"form": "hidden"},
    "answer": {"positions": "answer"},
    "hidden-answer": {"form": "hidden", "positions": "answer"},
    "shared": {"shared_expert": True, "num_experts": 4},
    "top": {"top_k": 2},
    "one": {"num_experts": 1},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def saved(directory, mixture, fingerprint="tiny", backbone=""):
    """Write a mixture as a run does."""
    directory.mkdir(exist_ok=True)
    arrays = {name: array.numpy() for name, array in mixture.state_dict().items()}
    (directory / WEIGHTS).write_bytes(weights_bytes(arrays))
    (directory / CARD).write_text(json.dumps(card(mixture.spec, backbone, fingerprint, 1)))
    return directory


def tiny_mixture(kind="plain", **changes):
    return mixture_for(tiny_backbone(), **(KINDS[kind] | changes))


def loaded(directory, kind="plain", **changes):
    """Return a tiny model with an adapter, as peft loads it, and the mixture."""
    mixture = tiny_mixture(kind, **changes)
    return PeftModel.from_pretrained(tiny_llama(), saved(directory, mixture)), mixture


def inputs_of(batch):
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels[:, -batch.labels.shape[1] :] = batch.labels
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}


def prompts_of(count=3):
    """Return the prompts of examples as one left-padded batch for generate, their tasks, and each one alone."""
    texts = [replace(text, answer_ids=[]) for text in tokenized(examples(count))]
    batch = collate(texts, 2, CPU)
    singles = [torch.tensor([text.prompt_ids]) for text in texts]
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, batch.tasks, singles


# --- forward ---


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


# --- generate ---


def generated(model, inputs, num_tokens=8, **kwargs):
    kwargs = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False} | kwargs
    return model.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]


def greedy_by_hand(prompted, ids, task, num_tokens=8):
    """Read the whole text again for every token."""
    prompt = ids.shape[1]
    with torch.no_grad():
        for _ in range(num_tokens):
            read = (ids > 2).long()
            read[:, prompt:] = 0
            logits, _ = prompted.logits(Batch(ids, torch.ones_like(ids), read, ids[:, prompt:], (task,)))
            logits[0, -1, 1] = -torch.inf  # min_new_tokens: the text may not end
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompt:]


@kinds
def test_generate_is_a_greedy_loop_by_hand_with_a_cache_and_without(tmp_path, kind):
    model, mixture = loaded(tmp_path, kind)
    inputs, tasks, singles = prompts_of()
    prompted = PromptedBackbone(tiny_backbone(), mixture)
    expected = torch.cat([greedy_by_hand(prompted, ids, task) for ids, task in zip(singles, tasks, strict=True)])
    model(**inputs, tasks=tasks)
    weights = model.expert_weights
    for use_cache in (True, False):
        assert torch.equal(generated(model, inputs, tasks=tasks, use_cache=use_cache), expected)
        torch.testing.assert_close(model.expert_weights, weights, **FLOAT32)  # as of the prompt alone
        for row, (ids, task) in enumerate(zip(singles, tasks, strict=True)):
            alone = generated(model, {"input_ids": ids}, tasks=[task], use_cache=use_cache)
            assert torch.equal(alone[0], expected[row])
    with model.disable_adapter():
        assert not torch.equal(generated(model, inputs), expected)


@pytest.mark.parametrize("kind", ["both", "hidden", "answer"])
def test_beams_and_samples_of_a_text_share_its_weights(tmp_path, kind):
    model, _ = loaded(tmp_path, kind)
    inputs, tasks, singles = prompts_of()
    for ways in (
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 5},
    ):
        outputs = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            outputs.append(generated(model, inputs, tasks=tasks, use_cache=use_cache, **ways))
            rows = model.expert_weights.view(3, -1, 3)
            assert rows.shape[1] > 1 and (rows == rows[:, :1]).all() and not torch.equal(rows[0], rows[1])
        assert torch.equal(*outputs)
        if "do_sample" not in ways:
            alone = [
                generated(model, {"input_ids": ids}, tasks=[task], **ways)
                for ids, task in zip(singles, tasks, strict=True)
            ]
            assert torch.equal(outputs[0], torch.cat(alone))


def test_the_same_seed_draws_the_same_sample(tmp_path):
    model, _ = loaded(tmp_path)
    inputs, _, _ = prompts_of()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(generated(model, inputs, do_sample=True))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_streamer_gets_the_text_as_it_comes(tmp_path, capsys):
    model, _ = loaded(tmp_path)
    tokenizer = byte_tokenizer()
    ids = prompts_of(1)[2][0]
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = generated(model, {"input_ids": ids}, streamer=streamer)
    assert capsys.readouterr().out == tokenizer.decode(tokens[0], skip_special_tokens=True) + "\n"


def test_speculating_changes_nothing(tmp_path):
    """Prompt lookup lets a pass over the prompt hold guesses of the answer too: the gate must not read them."""
    model, _ = loaded(tmp_path)
    ids = prompts_of(1)[2][0].repeat(1, 2)
    assert torch.equal(
        generated(model, {"input_ids": ids}, 12), generated(model, {"input_ids": ids}, 12, prompt_lookup_num_tokens=3)
    )


def test_tasks_change_what_is_generated(tmp_path):
    model, mixture = loaded(tmp_path, "task")
    ids = prompts_of(1)[2][0]
    found = {}
    for task in ("unheard-of", *TASKS):
        generated(model, {"input_ids": ids}, tasks=[task])
        found[task] = model.expert_weights
    model.get_base_model()(ids)  # of no task: those of the last generate are forgotten
    assert torch.equal(found["unheard-of"], model.expert_weights)
    for row, task in enumerate(TASKS):
        expected = mixture.gate.query(mixture.gate.task_embeddings[row]) @ mixture.gate.expert_keys.T
        torch.testing.assert_close(found[task][0], expected.softmax(-1), **FLOAT32)


# --- What cannot be ---


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"form": "soft"}, "form must be one of kv, hidden, got 'soft'"),
        ({"shared_expert": True, "num_experts": 2}, "at least 3 with a shared expert, got 2"),
        ({"top_k": 9}, "top_k must be from 0 to 8"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"gate": "task"}, "gate='task' needs tasks"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM or left out"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        MixtureConfig(**changes)


def test_a_model_of_another_shape_is_refused(tmp_path):
    directory = saved(tmp_path, tiny_mixture())
    with pytest.raises(ValueError, match=r"hidden states of 64 .* but the model has 32"):
        PeftModel.from_pretrained(tiny_llama(hidden_size=32), directory)
    with pytest.raises(ValueError, match="but the model has 64 and"):
        PeftModel.from_pretrained(tiny_llama(num_hidden_layers=5), directory)


def test_prompts_cannot_be_merged(tmp_path):
    model, _ = loaded(tmp_path)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="prompts are chosen for each input"):
            merge()


# --- Adapters come and go ---


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_disabled_or_unloaded_the_backbone_is_bit_identical(tmp_path, attention):
    plain = tiny_llama(attn_implementation=attention)
    batch = batch_of()
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": positions}
    expected = plain(**inputs).logits
    directory = saved(tmp_path, tiny_mixture())
    model = PeftModel.from_pretrained(tiny_llama(attn_implementation=attention), directory)
    prompted = model(**inputs).logits
    assert not torch.allclose(prompted, expected, atol=0.1)
    for _ in range(2):
        with model.disable_adapter():
            assert torch.equal(model(**inputs, tasks=["turn"] * 4).logits, expected)
        assert torch.equal(model(**inputs).logits, prompted)
    unloaded = model.unload()
    assert torch.equal(unloaded(**inputs).logits, expected)
    assert unloaded.state_dict().keys() == plain.state_dict().keys()
    assert unloaded.__dict__.keys() == plain.__dict__.keys() and "forward" not in unloaded.__dict__
    assert unloaded.config._attn_implementation == attention
    for module in unloaded.modules():
        assert not module._forward_pre_hooks and "prompts" not in module.__dict__
    again = PeftModel.from_pretrained(unloaded, directory)
    assert torch.equal(again(**inputs).logits, prompted)


def test_adapters_are_told_apart_by_name(tmp_path):
    first, second = tiny_mixture(), tiny_mixture("shared", seed=1)
    model = PeftModel.from_pretrained(tiny_llama(), saved(tmp_path / "1", first), adapter_name="first")
    batch = batch_of()
    expected = [PromptedBackbone(tiny_backbone(), mixture).logits(batch)[0].detach() for mixture in (first, second)]
    model.load_adapter(saved(tmp_path / "2", second), "second")

    def logits():
        return model(**inputs_of(batch)).logits[:, -batch.num_logits :]

    torch.testing.assert_close(logits(), expected[0], **FLOAT32)
    cache = model(**inputs_of(batch), use_cache=True).past_key_values
    model.set_adapter("second")
    torch.testing.assert_close(logits(), expected[1], **FLOAT32)
    assert model.get_model_status().active_adapters == ["second"]
    with pytest.raises(ValueError, match="not read by this mixture"):
        model(batch.input_ids[:, :1], past_key_values=cache)
    trained = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"second"}
    model.save_pretrained(tmp_path / "both")
    for name, mixture in (("first", first), ("second", second)):
        found = read_mixture(tmp_path / "both" / name)
        assert found.spec == mixture.spec
        assert all(
            torch.equal(torch.from_numpy(found.arrays[key]), value) for key, value in mixture.state_dict().items()
        )
    model.delete_adapter("second")
    assert model.active_adapters == ["first"]
    torch.testing.assert_close(logits(), expected[0], **FLOAT32)
    model.delete_adapter("first")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": positions}
    assert torch.equal(model.base_model.model(**inputs).logits, tiny_llama()(**inputs).logits)


@kinds
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_under_another_name_it_is_the_same(tmp_path, kind, low_cpu_mem_usage):
    model, mixture = loaded(tmp_path / "run", kind)
    model.save_pretrained(tmp_path / "saved")
    found = read_mixture(tmp_path / "saved")
    assert found.spec == mixture.spec and found.fingerprint == "tiny"
    other = PeftModel.from_pretrained(
        tiny_llama(), tmp_path / "saved", adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage
    )
    batch = batch_of()
    assert torch.equal(model(**inputs_of(batch)).logits, other(**inputs_of(batch)).logits)
    assert all(
        torch.equal(value, other.base_model.prompt_mixture["other"].state_dict()[name])
        for name, value in mixture.state_dict().items()
    )
    inputs, tasks, _ = prompts_of()
    assert torch.equal(generated(model, inputs, tasks=tasks), generated(other, inputs, tasks=tasks))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_a_copy_of_the_model_is_a_model_of_its_own(tmp_path):
    model = PeftModel.from_pretrained(tiny_llama(), saved(tmp_path, tiny_mixture()), is_trainable=True)
    inputs = inputs_of(batch_of())
    before = model(**inputs).logits
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**inputs).logits, before)
    with torch.no_grad():
        for parameter in copied.base_model.prompt_mixture.parameters():
            parameter.zero_()
    assert torch.equal(model(**inputs).logits, before)
    assert not torch.allclose(copied(**inputs).logits, before)


def test_an_interrupted_call_leaves_nothing_behind(tmp_path):
    model, _ = loaded(tmp_path)
    inputs, _, _ = prompts_of()
    expected = generated(model, inputs)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.get_base_model().model.layers[3].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generated(model, inputs)
    hook.remove()
    assert torch.equal(generated(model, inputs), expected)


# --- Training ---


def test_a_new_mixture_takes_its_shape_from_the_model():
    model = get_peft_model(tiny_llama(), MixtureConfig(num_experts=3, injection_layer=1))
    config = model.peft_config["default"]
    assert (config.hidden_size, config.injection_layer) == (64, 1)
    assert config.kv_shapes == {layer: [2, 16, 16] for layer in "123"}
    assert get_peft_model(tiny_llama(), MixtureConfig()).peft_config["default"].injection_layer == 2
    same, other = (
        get_peft_model(tiny_llama(), MixtureConfig(num_experts=3, injection_layer=1, seed=s)) for s in (0, 1)
    )
    arrays = [m.base_model.prompt_mixture["default"].state_dict() for m in (model, same, other)]
    assert all(torch.equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    assert not torch.equal(arrays[0]["pool.keys.1"], arrays[2]["pool.keys.1"])


def test_transformers_trainer_trains_it(tmp_path):
    model = get_peft_model(tiny_llama(), MixtureConfig(num_experts=3))
    before = copy.deepcopy(model.state_dict())
    texts = tokenized(examples(8))

    def padded(features):
        return inputs_of(collate(features, 2, CPU))

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, learning_rate=0.2, report_to=[], use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False, save_strategy="no", per_device_train_batch_size=8, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=texts, data_collator=padded)
    first = trainer.evaluate(texts)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(texts)["eval_loss"] < first - 0.1
    for name, value in model.state_dict().items():
        fixed = "prompt_mixture" not in name or name.endswith(("gate.mean", "gate.scale"))
        assert torch.equal(before[name], value) == fixed, name


# --- Which backbone ---


def on_disk(directory, seed=0):
    tiny_llama(seed).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


def from_disk(directory, **kwargs):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **kwargs)


def test_another_backbone_is_refused_by_name(tmp_path, caplog):
    right, wrong = on_disk(tmp_path / "right"), on_disk(tmp_path / "wrong", seed=1)
    directory = saved(tmp_path / "run", tiny_mixture(), fingerprint(right, "none"), right)
    model = PeftModel.from_pretrained(from_disk(right), directory)
    with pytest.raises(ValueError, match=f"{wrong} with quantization none has .*: load the same weights") as error:
        PeftModel.from_pretrained(from_disk(wrong), directory)
    assert "\n" not in str(error.value)
    assert not caplog.records
    other = PeftModel.from_pretrained(from_disk(wrong), directory, any_backbone=True)
    inputs = inputs_of(batch_of())
    assert not torch.allclose(model(**inputs).logits, other(**inputs).logits)
    other.save_pretrained(tmp_path / "saved")
    assert "any_backbone" not in json.loads((tmp_path / "saved" / CARD).read_text())
    with caplog.at_level(logging.WARNING):
        PeftModel.from_pretrained(tiny_llama(), directory)
    assert [record.getMessage() for record in caplog.records] == [
        "this model has no files to compare with: is it the backbone that the mixture was trained on?"
    ]
    fresh = get_peft_model(from_disk(right), MixtureConfig())
    assert fresh.peft_config["default"].fingerprint == fingerprint(right, "none")


def test_auto_classes_find_the_backbone(tmp_path):
    source = on_disk(tmp_path / "backbone")
    mixture = tiny_mixture()
    directory = saved(tmp_path / "run", mixture, fingerprint(source, "none"), source)
    model = AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    batch = batch_of()
    expected, _ = PromptedBackbone(tiny_backbone(), mixture).logits(batch)
    torch.testing.assert_close(model(**inputs_of(batch)).logits[:, -batch.num_logits :], expected, **FLOAT32)


@pytest.mark.parametrize(
    ("quantization", "config"),
    [
        ("nf4", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)),
        ("int8", BitsAndBytesConfig(load_in_8bit=True)),
    ],
)
def test_quantized_backbones_train_and_generate(tmp_path, quantization, config):
    source = on_disk(tmp_path / "backbone")
    backbone = load_backbone.__wrapped__(source, quantization, "cpu")
    mixture = mixture_for(backbone)
    directory = saved(tmp_path / "run", mixture, fingerprint(source, quantization), source)
    with pytest.raises(ValueError, match="with quantization none has"):
        PeftModel.from_pretrained(from_disk(source), directory)
    model = PeftModel.from_pretrained(from_disk(source, quantization_config=config), directory, is_trainable=True)
    batch = batch_of()
    with torch.no_grad():
        expected, _ = PromptedBackbone(Backbone(model.get_base_model(), None, "", CPU), mixture).logits(batch)
    model.set_adapter("default")

    def gradients():
        model.zero_grad()
        output = model(**inputs_of(batch))
        output.loss.backward()
        return output.logits, [p.grad.clone() for p in model.parameters() if p.requires_grad]

    logits, before = gradients()
    torch.testing.assert_close(logits[:, -batch.num_logits :], expected, rtol=1e-2, atol=1e-2)
    model.eval()
    inputs, _, _ = prompts_of()
    assert generated(model, inputs).shape == (3, 8)
    for first, second in zip(before, gradients()[1], strict=True):
        assert torch.equal(first, second)


def test_the_method_can_be_imported_again():
    kinds_before = list(PeftType)
    importlib.reload(peft_mixture)
    assert list(PeftType) == kinds_before and PeftType("MIXTURE_OF_PROMPTS") is PeftType["MIXTURE_OF_PROMPTS"]
    assert MixtureConfig().peft_type is PeftType.MIXTURE_OF_PROMPTS
