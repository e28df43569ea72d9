"""A mixture and a model must fit: shapes, and the files that the backbone came from."""

import json
import logging

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from peft_tiny import FLOAT32, from_disk, inputs_of, peft_warns, saved, tiny_mixture
from tiny import (
    backbone_on_disk,
    batch_of,
    tiny_backbone,
    tiny_llama,
)

from common.fingerprint import fingerprint
from common.injection import PromptedBackbone
from common.mixture_file import CARD
from common.peft_config import MixtureConfig

pytestmark = peft_warns


def test_a_model_of_another_shape_is_refused(tmp_path):
    directory = saved(tmp_path, tiny_mixture())
    with pytest.raises(ValueError, match=r"hidden states of 64 .* but the model has 32"):
        PeftModel.from_pretrained(tiny_llama(hidden_size=32), directory)
    with pytest.raises(ValueError, match="but the model has 64 and"):
        PeftModel.from_pretrained(tiny_llama(num_hidden_layers=5), directory)


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


def test_another_backbone_is_refused_by_name(tmp_path, caplog):
    right, wrong = backbone_on_disk(tmp_path / "right"), backbone_on_disk(tmp_path / "wrong", seed=1)
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
    source = backbone_on_disk(tmp_path / "backbone")
    mixture = tiny_mixture()
    directory = saved(tmp_path / "run", mixture, fingerprint(source, "none"), source)
    model = AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    batch = batch_of()
    expected, _ = PromptedBackbone(tiny_backbone(), mixture).logits(batch)
    torch.testing.assert_close(model(**inputs_of(batch)).logits[:, -batch.num_logits :], expected, **FLOAT32)
