"""Loading backbones: frozen, exact in gradient whatever is evaluated between, and told apart by fingerprint."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file
from tiny import LAYERS, batch_of, byte_tokenizer, logits_of, mixture_for, tiny_llama
from torch.profiler import ProfilerActivity, profile

from common import backbone as backbone_module
from common.answer_loss import answer_nll
from common.backbone import compute_dtype, load_backbone, resolve_device
from common.backbone_source import locate
from common.decoder import forward
from common.fingerprint import fingerprint, fingerprint_of, tokenizer_hash, weights_hash
from common.injection import PromptedBackbone
from common.tokenizer import train_tokenizer

CPU = torch.device("cpu")
REPACKS = torch.cpu.get_capabilities().get("avx512_bf16", False)


def save(directory, seed=0, tokenizer=None):
    tiny_llama(seed).save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return str(directory)


def gradients(prompted):
    """Return the gradient of the loss with respect to every array of the mixture."""
    prompted.mixture.zero_grad()
    batch = batch_of()
    logits, _ = logits_of(prompted, batch)
    answer_nll(logits, batch.labels).sum().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in prompted.mixture.named_parameters()
    }


def evaluate_backbone(backbone):
    batch = batch_of()
    with torch.no_grad():
        return forward(backbone, batch.input_ids, batch.attention_mask, batch.num_logits)


def relative_error(got, expected):
    got, expected = (torch.cat([g.flatten() for g in tensors.values()]).double() for tensors in (got, expected))
    return float((got - expected).norm() / expected.norm())


def dequantised(backbone):
    """Put plain linear layers of the same values in place of the 4-bit ones."""
    for module in list(backbone.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear4bit):
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight.data = dequantize_4bit(child.weight.data, child.weight.quant_state)
                setattr(module, name, linear.requires_grad_(False))
    return backbone


@pytest.mark.parametrize("quantization", ["none", "nf4", "nf4-double", "fp4", "int8", "int8-weights"])
def test_a_loaded_backbone_is_frozen_and_near_its_original(tmp_path, quantization):
    backbone = load_backbone(save(tmp_path), quantization, "cpu")
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())
    assert (backbone.hidden_size, backbone.num_layers, backbone.max_positions) == (64, LAYERS, 256)
    kinds = {"none": torch.nn.Linear, "int8": Linear8bitLt, "int8-weights": torch.nn.Linear}
    linears = [m for name, m in backbone.model.named_modules() if name.endswith("_proj")]
    assert len(linears) == 7 * LAYERS and all(type(m) is kinds.get(quantization, Linear4bit) for m in linears)
    assert all((type(m.weight.data) is torch.Tensor) == (quantization != "int8-weights") for m in linears)
    assert backbone.model.get_input_embeddings().weight.dtype == compute_dtype(CPU)
    assert type(backbone.model.get_output_embeddings()) is torch.nn.Linear
    batch = batch_of()
    expected = forward(backbone_module.Backbone(tiny_llama(), None, "", CPU), batch.input_ids, batch.attention_mask, 5)
    got = forward(backbone, batch.input_ids, batch.attention_mask, 5)
    # What rounding weights to 8 or 4 bits costs after four layers of large random weights; another model is off by 1.4.
    error = float((got - expected).norm() / expected.norm())
    assert error < {"none": 0.05, "int8": 0.1, "int8-weights": 0.1}.get(quantization, 0.8)


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double", "fp4", "int8", "int8-weights"])
def test_gradients_are_the_same_before_and_after_an_evaluation(tmp_path, quantization):
    backbone = load_backbone(save(tmp_path), quantization, "cpu")
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    before = gradients(prompted)
    first = evaluate_backbone(backbone)
    after = gradients(prompted)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(evaluate_backbone(backbone), first)


@pytest.mark.skipif(not REPACKS, reason="bitsandbytes repacks 4-bit weights on CPUs with avx512_bf16 only")
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered:UserWarning")
def test_without_the_cure_an_evaluation_spoils_gradients_and_the_check_says_so(tmp_path, monkeypatch):
    """When this fails, bitsandbytes has mended its repacking: _keep_exact_gradients may go."""
    monkeypatch.setattr(backbone_module, "_keep_exact_gradients", lambda model: None)
    with pytest.raises(ValueError, match="quantization nf4 gives wrong gradients on this device"):
        load_backbone.__wrapped__(save(tmp_path), "nf4", "cpu")


def test_nf4_gradients_equal_those_of_the_dequantised_model(tmp_path):
    backbone = load_backbone.__wrapped__(save(tmp_path), "nf4", "cpu")
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    evaluate_backbone(backbone)
    quantised = gradients(prompted)
    prompted.remove()
    plain = dequantised(backbone)
    expected = gradients(PromptedBackbone(plain, mixture_for(plain)))
    assert not any(isinstance(module, Linear4bit) for module in plain.model.modules())
    # The same bfloat16 products, which another CPU's kernel may sum in another order; measured 0 here.
    assert relative_error(quantised, expected) < 0.02


def test_a_backbone_is_loaded_once_per_process(tmp_path):
    directory = save(tmp_path)
    assert load_backbone(directory, "none", "cpu") is load_backbone(directory, "none", "cpu")


def test_the_fingerprint_tells_weights_tokenizer_and_quantization(tmp_path):
    def fingerprint(directory, quantization="none", device="cpu"):
        return load_backbone.__wrapped__(directory, quantization, device).fingerprint

    first = save(tmp_path / "first")
    same = save(tmp_path / "same")
    other_weights = save(tmp_path / "weights", seed=1)
    other_tokenizer = save(tmp_path / "tokenizer", tokenizer=train_tokenizer(["ab ab"] * 9, 260))
    prints = [
        fingerprint(first),
        fingerprint(other_weights),
        fingerprint(other_tokenizer),
        fingerprint(first, "nf4"),
        fingerprint(first, "int8"),
    ]
    assert len(set(prints)) == 5
    assert fingerprint(same) == fingerprint(first, device="auto") == prints[0]


def test_the_fingerprint_tells_architecture_but_not_who_saved_it(tmp_path):
    def fingerprint(name, **changes):
        directory = save(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return load_backbone.__wrapped__(directory, "none", "cpu").fingerprint

    plain = fingerprint("plain")
    assert fingerprint("older", transformers_version="5.0.0") == plain
    assert fingerprint("wider", rms_norm_eps=1e-3) != plain


def test_weights_and_tokenizer_have_a_hash_each(tmp_path):
    def hashes(directory):
        return weights_hash(directory), tokenizer_hash(directory)

    first = hashes(save(tmp_path / "first"))
    assert hashes(save(tmp_path / "same")) == first
    other_weights = hashes(save(tmp_path / "weights", seed=1))
    other_tokenizer = save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert [own == of_first for own, of_first in zip(other_weights, first, strict=True)] == [False, True]
    assert [own == of_first for own, of_first in zip(hashes(other_tokenizer), first, strict=True)] == [True, False]


def test_a_file_that_changes_is_hashed_anew(tmp_path):
    directory = save(tmp_path)
    before = tokenizer_hash(directory)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert tokenizer_hash(directory) != before


def test_saved_runs_of_the_built_in_backbone_still_match():
    """The value that stands in their adapter_config.json."""
    assert fingerprint(locate("skills"), "nf4") == "a672a2fa28804dd913fe525261bfa3d3"


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    directory = save(tmp_path / "old")
    torch.save(load_file(tmp_path / "old" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no \*.safetensors: save it with save_pretrained"):
        load_backbone.__wrapped__(directory, "none", "cpu")


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ValueError, match="device is cuda, but torch finds no CUDA device: choose cpu or auto"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("abilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_cpus_compute_in_bfloat16_where_the_hardware_does(monkeypatch, abilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert compute_dtype(CPU) == dtype
    assert compute_dtype(torch.device("cuda")) == torch.bfloat16


def test_an_unknown_backbone_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="unknown backbone '/no/such/place'"):
        load_backbone("/no/such/place", "none", "cpu")
    with pytest.raises(ValueError, match="unknown backbone"):
        load_backbone(str(tmp_path), "none", "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backbone_computes_in_what_is_asked_for(tmp_path, dtype):
    backbone = load_backbone.__wrapped__(save(tmp_path), "nf4", "cpu", dtype)
    assert backbone.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    assert backbone.model.model.layers[0].self_attn.q_proj.weight.quant_state.dtype == getattr(torch, dtype)


def test_a_checkpoint_of_quantized_weights_loads_as_stored(tmp_path):
    first = load_backbone.__wrapped__(save(tmp_path / "plain"), "nf4-double", "cpu")
    first.model.save_pretrained(tmp_path / "nf4")
    byte_tokenizer().save_pretrained(tmp_path / "nf4")
    with pytest.raises(ValueError, match=r"quantization must be stored for backbone .*, whose files are quantized by"):
        load_backbone.__wrapped__(str(tmp_path / "nf4"), "none", "cpu")
    again = load_backbone.__wrapped__(str(tmp_path / "nf4"), "stored", "cpu")
    assert torch.equal(evaluate_backbone(again), evaluate_backbone(first))
    assert again.fingerprint == fingerprint_of(again.model) != first.fingerprint == fingerprint_of(first.model)


def test_a_checkpoint_whose_quantization_cannot_be_loaded_is_refused_by_name(tmp_path):
    path = Path(save(tmp_path)) / "config.json"
    stored = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": stored}))
    with pytest.raises(ValueError, match=r"is quantized by gptq, which cannot be loaded here .*: install what") as told:
        load_backbone.__wrapped__(str(tmp_path), "stored", "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("num_texts", [1, 8])
def test_the_heads_weights_are_not_copied_for_each_text(num_texts):
    backbone = load_backbone("skills", "none", "cpu", "bfloat16")
    batch = batch_of(num_texts)
    weights = backbone.model.get_output_embeddings().weight.nbytes
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        forward(backbone, batch.input_ids, batch.attention_mask, batch.num_logits)
    made = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert num_texts * weights not in made
