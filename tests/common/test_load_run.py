"""A run's result as a model: the right backbone, the mixture's numbers, and one line where that cannot be."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft_tiny import peft_warns
from tiny import CPU, backbone_on_disk, byte_tokenizer, examples, mixture_for, run_on_disk, tokenized
from transformers import AutoModelForCausalLM

from common.backbone import load_backbone
from common.backbone_source import built_in_directory
from common.batches import IGNORED, collate
from common.injection import PromptedBackbone
from common.load_run import load_run
from common.mixture_file import CARD, WEIGHTS
from common.saved_run import CONFIG, read_run

# What peft prints on loading when it is called without load_run.


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_loaded_run_scores_as_it_was_trained(tmp_path, quantization):
    source = backbone_on_disk(tmp_path / "backbone")
    mixture = run_on_disk(tmp_path / "run", source, quantization)
    model, tokenizer = load_run(tmp_path / "run", device="cpu")
    batch = collate(tokenized(examples(4)), 2, CPU)
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels[:, -batch.labels.shape[1] :] = batch.labels
    with torch.no_grad():
        prompted = PromptedBackbone(load_backbone.__wrapped__(source, quantization, "cpu"), mixture)
        expected, log_weights = prompted.logits(batch)
        output = model(batch.input_ids, batch.attention_mask, labels=labels)
    # The head's bfloat16 products of some positions or of all: other kernels may sum in another order.
    torch.testing.assert_close(output.logits[:, -batch.num_logits :].float(), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(model.expert_weights, log_weights.exp())
    assert tokenizer("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@peft_warns
def test_it_saves_and_loads_as_any_adapter(tmp_path):
    source = backbone_on_disk(tmp_path / "backbone")
    run_on_disk(tmp_path / "run", source)
    model, _ = load_run(tmp_path / "run", device="cpu")
    model.save_pretrained(tmp_path / "saved")
    for directory in (tmp_path / "run", tmp_path / "saved"):
        plain = AutoModelForCausalLM.from_pretrained(source, dtype=model.dtype)
        batch = collate(tokenized(examples(4)), 2, CPU)
        for other in (
            PeftModel.from_pretrained(plain, directory),
            AutoPeftModelForCausalLM.from_pretrained(directory, dtype=model.dtype),
        ):
            assert torch.equal(
                model(batch.input_ids, batch.attention_mask).logits, other(batch.input_ids, batch.attention_mask).logits
            )
    with pytest.raises(ValueError, match=r"has no config\.json, which names a run's backbone: give backbone and quant"):
        load_run(tmp_path / "saved")
    again, _ = load_run(tmp_path / "saved", source, "none", device="cpu")
    assert again.peft_config["default"].server_round == 2


@peft_warns
def test_the_built_in_backbone_is_found_by_its_name(tmp_path):
    mixture = mixture_for(load_backbone("skills", "none", "cpu"))
    run_on_disk(tmp_path / "run", str(built_in_directory()), mixture=mixture)
    for name in (CARD, CONFIG):
        described = json.loads((tmp_path / "run" / name).read_text())
        described["base_model_name_or_path" if name == CARD else "backbone"] = "skills"
        (tmp_path / "run" / name).write_text(json.dumps(described))
    model, tokenizer = load_run(tmp_path / "run", device="cpu")
    other = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run", dtype=model.dtype)
    inputs = tokenizer("spell this backwards\nword ->\n", return_tensors="pt")
    first, second = (m.generate(**inputs, max_new_tokens=6, do_sample=False) for m in (model, other))
    assert torch.equal(first, second)
    model.save_pretrained(tmp_path / "saved")  # warns of nothing


def test_two_runs_of_one_backbone_do_not_meet(tmp_path):
    source = backbone_on_disk(tmp_path / "backbone")
    backbone = load_backbone(source, "none", "cpu")
    for seed in (0, 1):
        run_on_disk(tmp_path / str(seed), source, mixture=mixture_for(backbone, seed=seed))
    first, _ = load_run(tmp_path / "0", device="cpu")
    ids = torch.tensor([tokenized(examples(1))[0].prompt_ids])
    before = first(ids).logits
    second, _ = load_run(tmp_path / "1", device="cpu")
    assert torch.equal(first(ids).logits, before)
    assert not torch.equal(second(ids).logits, before)
    assert load_backbone(source, "none", "cpu").model.forward.__self__ is backbone.model


def test_another_backbone_is_an_error_unless_any_will_do(tmp_path):
    source, other = (backbone_on_disk(tmp_path / name, seed) for seed, name in enumerate(("right", "wrong")))
    run_on_disk(tmp_path / "run", source)
    for arguments, name in (((other, None), "wrong' with quantization none"), ((None, "nf4"), "quantization nf4")):
        with pytest.raises(ValueError, match=f"{name} has .*: choose the same weights, tokenizer and quantization"):
            load_run(tmp_path / "run", *arguments, device="cpu")
        model, _ = load_run(tmp_path / "run", *arguments, device="cpu", any_backbone=True)
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
        assert model.peft_config["default"].base_model_name_or_path == (arguments[0] or source)


def test_what_is_no_run_is_an_error_in_one_line(tmp_path):
    source = backbone_on_disk(tmp_path / "backbone")

    def fails(message, name):
        with pytest.raises(ValueError, match=message) as error:
            read_run(tmp_path / name)
        assert "\n" not in str(error.value)

    fails("has no adapter_config.json: give the directory of a run that finished a round", "nowhere")
    run_on_disk(tmp_path / "run", source)
    weights = (tmp_path / "run" / WEIGHTS).read_bytes()
    (tmp_path / "run" / WEIGHTS).write_bytes(weights[:-40])
    fails("is no saved mixture, or damaged", "run")
    (tmp_path / "run" / WEIGHTS).write_bytes(weights)
    described = json.loads((tmp_path / "run" / CARD).read_text())
    (tmp_path / "run" / CARD).write_text(json.dumps(described | {"peft_type": "LORA"}))
    fails("it holds a LORA", "run")
    (tmp_path / "run" / CARD).write_text(json.dumps(described))
    (tmp_path / "run" / CONFIG).write_text("{")
    fails("config.json is damaged .*: give backbone and quantization", "run")
    (tmp_path / "run" / CONFIG).write_text(json.dumps({"backbone": source}))
    fails("config.json is damaged", "run")
    (tmp_path / "run" / CONFIG).write_text(json.dumps({"backbone": "/no/where", "quantization": "none"}))
    fails("unknown backbone '/no/where'", "run")
    (tmp_path / "run" / CONFIG).write_text(json.dumps({"backbone": source, "quantization": "fp3"}))
    fails("quantization must be one of none, nf4, nf4-double, fp4, int8, int8-weights, stored, got 'fp3'", "run")
