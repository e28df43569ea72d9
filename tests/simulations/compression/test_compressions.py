"""What compressing costs: bytes that are really held, ratios to the uncompressed backbone, and refusals told."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console
from tiny import LAYERS, byte_tokenizer, tiny_llama

from common.backbone import load_backbone
from common.example import Example
from simulations.compression import compressions
from simulations.compression.compressions import measure_compressions
from simulations.compression.compressions_table import document, sections
from simulations.compression.price import resident_bytes

EXAMPLES = [Example("validation", "t", "d", "", "say", f"{n}" * (n + 1), "yes") for n in range(4)]


@pytest.fixture
def source(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_resident_bytes_are_those_of_codes_and_scales(source):
    plain = load_backbone.__wrapped__(source, "none", "cpu", "float32").model
    linear = sum(p.numel() for name, p in plain.named_parameters() if "_proj" in name)
    rest = sum(p.numel() for name, p in plain.named_parameters() if "_proj" not in name)
    buffers = sum(b.numel() * b.element_size() for b in plain.buffers())
    assert resident_bytes(plain) == 4 * (linear + rest) + buffers
    nf4 = resident_bytes(load_backbone.__wrapped__(source, "nf4", "cpu", "float32").model)
    # Half a byte a weight, a float32 scale for each 64 of them; each of the layers keeps 16 float32 values of the code.
    assert nf4 == linear // 2 + 4 * linear // 64 + 7 * LAYERS * 16 * 4 + 4 * rest + buffers
    int8 = resident_bytes(load_backbone.__wrapped__(source, "int8-weights", "cpu", "float32").model)
    outputs = sum(p.shape[0] for name, p in plain.named_parameters() if "_proj" in name)
    assert linear + 4 * outputs <= int8 - 4 * rest - buffers <= linear + 12 * outputs  # a scale, perhaps a zero, a row


def test_tied_weights_count_once():
    layer = torch.nn.Linear(4, 4, bias=False)
    assert resident_bytes(torch.nn.ModuleList([layer, layer])) == 64
    tied = torch.nn.Linear(4, 4, bias=False)
    tied.weight = layer.weight
    assert resident_bytes(torch.nn.ModuleList([layer, tied])) == 64


def test_every_compression_has_a_row_and_a_refused_one_says_why(source, tmp_path, monkeypatch):
    monkeypatch.setattr(compressions, "STEP_SECONDS", 0.0)
    monkeypatch.setattr("simulations.compression.price.SPEED_SECONDS", 0.0)

    def refuse(model, quantization):
        if quantization == "fp4":
            raise ValueError("quantization fp4 gives wrong gradients")

    monkeypatch.setattr("common.backbone.check_gradients", refuse)
    said = StringIO()
    output = tmp_path / "out"
    measure_compressions(
        [source, source], ["none", "nf4", "fp4"], EXAMPLES, "cpu", output, Console(file=said, width=200)
    )
    report = json.loads((output / "compressions.json").read_text())
    assert [(row["backbone"], row["quantization"]) for row in report["rows"]] == [
        ("tiny", "none"),
        ("tiny", "nf4"),
        ("tiny", "fp4"),
        ("tiny", "none"),
    ]
    none, nf4, fp4, _ = report["rows"]
    assert none["perplexity_ratio"] == 1.0 == none["resident_ratio"]
    assert nf4["resident_ratio"] < 0.7 and nf4["disk_bytes"] == none["disk_bytes"]
    assert nf4["perplexity"] != none["perplexity"]
    assert fp4["refused"] == "quantization fp4 gives wrong gradients"
    assert (output / "compressions.md").read_text() == document(report)
    assert "- tiny, fp4: quantization fp4 gives wrong gradients" in document(report)
    assert str(tmp_path) not in document(report)
    assert sections(report)["table"].strip() in said.getvalue()
