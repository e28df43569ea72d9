"""Mixtures as peft adapters: they come, go, are saved and trained, and give the plain backbone back."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_tiny import (
    FLOAT32,
    from_disk,
    generated,
    inputs_of,
    kinds,
    loaded,
    peft_warns,
    prompts_of,
    saved,
    tiny_mixture,
)
from tiny import (
    CPU,
    backbone_on_disk,
    batch_of,
    examples,
    mixture_for,
    tiny_backbone,
    tiny_llama,
    tokenized,
)
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments

from common.backbone import Backbone, load_backbone
from common.batches import collate
from common.fingerprint import fingerprint
from common.injection import PromptedBackbone
from common.mixture_file import read_mixture
from common.peft_config import MixtureConfig

pytestmark = peft_warns


def test_prompts_cannot_be_merged(tmp_path):
    model, _ = loaded(tmp_path)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="prompts are chosen for each input"):
            merge()


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


@pytest.mark.parametrize(
    ("quantization", "config"),
    [
        ("nf4", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)),
        ("int8", BitsAndBytesConfig(load_in_8bit=True)),
    ],
)
def test_quantized_backbones_train_and_generate(tmp_path, quantization, config):
    source = backbone_on_disk(tmp_path / "backbone")
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
