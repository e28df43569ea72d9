"""A whole compression: what it writes, that a run takes it, that it repeats, that an interrupted one leaves nothing."""

import json
import re

import pytest
import torch
from families import family_model
from rich.console import Console
from safetensors.torch import load_file
from tiny import backbone_on_disk, batch_of, byte_tokenizer, logits_of, mixture_for, tiny_llama

from common.backbone import load_backbone
from common.fingerprint import fingerprint
from common.injection import PromptedBackbone
from simulations.compression import compress as compress_module
from simulations.compression import price
from simulations.compression.compress import compress
from simulations.compression.options import METHODS, Options
from simulations.compression.texts import choose_texts
from simulations.pretraining.options import Device

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr(price, "SPEED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """Write 30 examples to look at and 6 to measure by."""
    path = tmp_path_factory.mktemp("calibration") / "rows.jsonl"
    words = (f"{'abcdefgh'[number % 8] * (1 + number % 5)}{number}" for number in range(36))
    rows = (
        {"task": "shout", "input": word, "output": word.upper(), "split": "validation" if number < 6 else "train"}
        for number, word in enumerate(words)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def compressed(backbone, output, calibration, method="wanda", sparsity=0.5, console=None, num_calibration=None):
    options = Options(backbone, output, method, sparsity, calibration, num_calibration, 0, Device.CPU)
    compress(options, choose_texts(options), console or Console(quiet=True))
    return str(output)


def weights_of(directory):
    return load_file(f"{directory}/model.safetensors")


def in_layers(name):
    return name.endswith("_proj.weight")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_of_the_decoder_layers_linear_weights_go_and_nothing_else_changes(tmp_path, calibration, method, dtype):
    source = str(tmp_path / "source")
    tiny_llama(tie_word_embeddings=True).to(dtype).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    original, before = fingerprint(source, "none"), weights_of(source)
    after = weights_of(compressed(source, tmp_path / "new", calibration, method))
    assert fingerprint(source, "none") == original  # its files are mapped into memory, where weights are set to zero
    assert set(before) == set(after) and "lm_head.weight" not in after
    for name, weight in after.items():
        assert weight.dtype == dtype
        if in_layers(name):
            kept = weight != 0
            assert int(kept.sum()) == weight.numel() / 2
            assert torch.equal(weight[kept], before[name][kept])
            assert method == "magnitude" or kept.sum(dim=1).eq(weight.shape[1] / 2).all()
        else:
            assert torch.equal(weight, before[name])
    model = load_backbone(str(tmp_path / "new"), "none", "cpu").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("method", METHODS)
def test_gpt2s_transposed_weights_are_pruned_by_their_outputs(tmp_path, calibration, method):
    source = str(tmp_path / "source")
    family_model("gpt2").save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    before, after = weights_of(source), weights_of(compressed(source, tmp_path / "new", calibration, method))
    pruned = {name for name in after if not torch.equal(before[name], after[name])}
    assert len(pruned) == 4 * 4 and all(re.search(r"\.h\.\d\.(attn|mlp)\.c_\w+\.weight$", name) for name in pruned)
    for name in pruned:
        assert int(after[name].eq(0).sum()) == after[name].numel() / 2
        assert method == "magnitude" or after[name].eq(0).sum(dim=0).eq(len(after[name]) / 2).all()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_backbone_of_it_takes_prompts(tmp_path, calibration, quantization):
    source = backbone_on_disk(tmp_path / "source")
    backbone = load_backbone(compressed(source, tmp_path / "new", calibration, "2:4"), quantization, "cpu")
    assert backbone.fingerprint != fingerprint(source, quantization)
    with torch.no_grad():
        plain, _ = logits_of(PromptedBackbone(backbone, mixture_for(backbone, scale=0.0)), batch_of())
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    logits, _ = logits_of(prompted, batch_of())
    logits.square().mean().backward()
    assert torch.isfinite(logits).all() and not torch.equal(logits, plain)
    assert all(parameter.grad is not None for parameter in prompted.mixture.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_options_give_the_same_bytes(tmp_path, calibration, method):
    source = backbone_on_disk(tmp_path / "source")
    directories = [compressed(source, tmp_path / name, calibration, method) for name in ("one", "two")]
    assert fingerprint(directories[0], "none") == fingerprint(directories[1], "none")


def test_it_prints_the_price_and_writes_it_on_the_card(tmp_path, calibration):
    source = backbone_on_disk(tmp_path / "source")
    console = Console(record=True, width=100)
    output = compressed(source, tmp_path / "new", calibration, "wanda", 0.25, console)
    shown, card = console.export_text(), (tmp_path / "new" / "README.md").read_text()
    size = (tmp_path / "new" / "model.safetensors").stat().st_size
    zeros = torch.cat([weight.flatten() for weight in weights_of(output).values()]).eq(0).double().mean()
    for text in (shown, card):
        assert f"{size:,} bytes" in text and f"{float(zeros):.1%}" in text
        assert "perplexity of answers" in text and "tokens/s" in text
    assert fingerprint(source, "none") in card and fingerprint(output, "none") in card
    assert "method wanda at sparsity 0.25, by 30 texts" in card
    assert f"fedmops compress {source} {output} --method wanda --sparsity 0.25" in card


def test_fewer_texts_than_asked_for_are_told(tmp_path, calibration, capsys):
    compressed(backbone_on_disk(tmp_path / "source"), tmp_path / "new", calibration, num_calibration=31)
    assert "pruned by 30 texts, not 31" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["write_pruned", "tokens_per_second", "model_card"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_one_leaves_nothing(tmp_path, calibration, monkeypatch, at, stop):
    source = backbone_on_disk(tmp_path / "source")
    before = getattr(compress_module, at)

    def interrupted(*args, **kwargs):
        before(*args, **kwargs)
        raise stop

    monkeypatch.setattr(compress_module, at, interrupted)
    with pytest.raises(stop):
        compressed(source, tmp_path / "new", calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_empty_output_and_the_rest_of_a_killed_process_are_replaced(tmp_path, calibration):
    (tmp_path / "new").mkdir()
    (tmp_path / ".new.part").mkdir()
    (tmp_path / ".new.part" / "junk").touch()
    compressed(backbone_on_disk(tmp_path / "source"), tmp_path / "new", calibration, "magnitude")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]
    assert not (tmp_path / "new" / "junk").exists() and (tmp_path / "new" / "README.md").is_file()


def test_a_quantized_backbone_is_refused(tmp_path, calibration):
    source = backbone_on_disk(tmp_path / "source")
    load_backbone.__wrapped__(source, "nf4", "cpu").model.save_pretrained(source)
    with pytest.raises(ValueError, match="is quantized: pass its original"):
        compressed(source, tmp_path / "new", calibration)
    assert not (tmp_path / "new").exists()


def test_a_mixture_of_experts_is_refused(tmp_path, calibration):
    source = str(tmp_path / "source")
    family_model("mixtral").save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    with pytest.raises(ValueError, match=r"outside of linear layers \(.*experts.*expected a dense model"):
        compressed(source, tmp_path / "new", calibration)


def test_answers_that_no_backbone_holds_are_refused(tmp_path, calibration):
    source = str(tmp_path / "source")
    tiny_llama(max_position_embeddings=1).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    with pytest.raises(ValueError, match="none of 30 answers fits into 1 tokens: choose other"):
        compressed(source, tmp_path / "new", calibration)
