"""A backbone whose layers lie on several devices: what is of the mixture follows, both ways.

torch's fake tensors have a device and no values, and refuse a product of two devices as a GPU does: two of them stand
for two GPUs, with accelerate's own hooks between the layers.
"""

from dataclasses import replace

import accelerate.hooks
import pytest
import torch
from accelerate import dispatch_model
from tiny import backbone_on_disk, batch_of, byte_tokenizer, mixture_for, tiny_backbone, tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from common.backbone import Backbone, load_backbone
from common.decoder import hidden_at, probe_kv_shapes
from common.injection import PromptedBackbone
from common.mixture import Mixture, mean_over_input
from common.mixture_spec import MixtureSpec

FIRST, SECOND = torch.device("cpu", 1), torch.device("cpu", 2)
PLACES = {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND, "lm_head": SECOND}
PLACES |= {f"model.layers.{layer}": FIRST if layer < 2 else SECOND for layer in range(4)}


def move(module, name, device, *_, **__):
    """Move a parameter as accelerate does, which makes a new one of a kind that fake tensors do not allow."""
    owner, _, name = name.rpartition(".")
    module = module.get_submodule(owner)
    if name in module._parameters:
        module._parameters[name] = torch.nn.Parameter(module._parameters[name].detach().to(device), requires_grad=False)
    else:
        module._buffers[name] = module._buffers[name].to(device)


@pytest.fixture
def spread(monkeypatch):
    """Yield a backbone over two devices, where all tensors are fake."""
    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", move)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = LlamaForCausalLM(tiny_config()).eval().requires_grad_(False)
        dispatch_model(model, PLACES, skip_keys=model._skip_keys_device_placement)
        assert {parameter.device for parameter in model.parameters()} == {FIRST, SECOND}
        yield Backbone(model, byte_tokenizer(), "tiny", FIRST)


def batch_on_first():
    batch = batch_of(4)
    names = ("input_ids", "attention_mask", "input_mask", "labels")
    return replace(batch, **{name: torch.empty_like(getattr(batch, name), device=FIRST) for name in names})


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("form", ["kv", "hidden"])
@pytest.mark.parametrize("positions", ["all", "answer"])
def test_prompts_follow_the_layers_and_gradients_come_back(spread, layer, form, positions):
    spec = MixtureSpec(3, 4, 8, 64, probe_kv_shapes(spread, layer), form=form, positions=positions)
    with FIRST:
        mixture = Mixture(spec)
    with PromptedBackbone(spread, mixture) as prompted:
        logits, log_weights = prompted.logits(batch_on_first())
    assert (logits.device, log_weights.device) == (FIRST, FIRST)
    (logits.sum() + log_weights.sum()).backward()
    assert {parameter.grad.device for parameter in mixture.parameters()} == {FIRST}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("layer", [1, 3])
def test_the_layers_below_can_be_skipped(spread, layer):
    with FIRST:
        mixture = Mixture(MixtureSpec(3, 4, 8, 64, probe_kv_shapes(spread, layer)))
    batch = batch_on_first()
    hidden = hidden_at(spread, layer, batch.input_ids, batch.attention_mask)
    assert mean_over_input(hidden.to(SECOND), batch.input_mask).device == SECOND
    with PromptedBackbone(spread, mixture) as prompted:
        assert prompted.logits(replace(batch, hidden=hidden.to(FIRST)))[0].device == FIRST


def test_a_layers_own_forward_is_what_it_was_after_it_was_skipped():
    """On real tensors: accelerate's hooks stay in place, and the figures are those without them."""
    plain, hooked = tiny_backbone(), tiny_backbone()
    dispatch_model(hooked.model, {"": "cpu"}, force_hooks=True)
    before = [layer.__dict__["forward"] for layer in hooked.model.model.layers]
    found = []
    for backbone in (plain, hooked):
        with PromptedBackbone(backbone, mixture_for(backbone, form="hidden")) as prompted:
            found.append([prompted.logits(batch_of())[0] for _ in range(2)])
    assert [layer.__dict__["forward"] for layer in hooked.model.model.layers] == before
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


# --- Loading ---


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Return what loads a backbone by a device map that gives `places`, as if there were GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real, asked = AutoModelForCausalLM.from_pretrained, []

    def load(device_map, places):
        def from_pretrained(source, device_map, **others):
            asked.append(device_map)
            model = real(source, **others)
            model.hf_device_map = places
            return model

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        source = backbone_on_disk(tmp_path / "backbone")
        return load_backbone.__wrapped__(source, "none", "cuda", "float32", device_map), asked

    return load


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_the_device_map_is_transformers(loaded, device_map):
    backbone, asked = loaded(device_map, {"model.layers.0": 0, "model.layers.1": 1})
    assert asked == [device_map]
    assert backbone.device == torch.device("cpu")  # where the embeddings are, here


@pytest.mark.parametrize("place", ["cpu", "disk", torch.device("cpu")])
def test_a_part_that_no_gpu_holds_is_an_error(loaded, place):
    with pytest.raises(ValueError, match=r"device-map auto leaves 1 of 2 parts of the backbone \(model.layers.1 f"):
        loaded("auto", {"model.layers.0": 0, "model.layers.1": place})


def test_a_cpu_takes_no_device_map(tmp_path):
    with pytest.raises(ValueError, match="device-map must be empty on a CPU, got 'auto': leave it out or give"):
        load_backbone.__wrapped__(backbone_on_disk(tmp_path), "none", "cpu", device_map="auto")
