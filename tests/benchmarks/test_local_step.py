"""The benchmark of a step: its texts, its floor, and figures for every method on a tiny backbone."""

import json
import sys

import pytest
import torch
from tiny import HIDDEN, LAYERS, VOCAB, backbone_on_disk, tiny_backbone

from benchmarks import local_step
from benchmarks.floor import step_flops
from benchmarks.peft_methods import CHANGE_THE_MODEL, peft_step
from benchmarks.texts import MIXED_LENGTHS, batches_of, random_texts
from simulations.benchmark_pages.local_step import DOCUMENT, JSON, MIXTURES, OURS, document, rows

SHORT = [(5, 2), (40, 3), (9, 1), (12, 6), (3, 3), (30, 2)]
METHODS = ("PromptTuning", "PrefixTuning", "MultitaskPromptTuning", "LoRA", "AdaptionPrompt", "X-LoRA")
# peft asks transformers by a name that goes in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_lengths_are_mixed_and_fit():
    assert len(MIXED_LENGTHS) == 512
    assert all(prompt >= 1 and answer >= 1 and prompt + answer <= 512 for prompt, answer in MIXED_LENGTHS)


def test_texts_have_their_lengths_and_batches_are_whole():
    texts = random_texts(tiny_backbone(), SHORT)
    assert [(len(text.prompt_ids), len(text.answer_ids)) for text in texts] == SHORT
    assert [len(batch) for batch in batches_of(texts, 4)] == [4]


def test_the_floor_counts_the_layers_that_train_and_the_answers_logits():
    backbone, layer = tiny_backbone(), 1
    texts = random_texts(backbone, SHORT)
    num_tokens, num_answers = sum(p + a for p, a in SHORT), sum(a for _, a in SHORT)
    a_layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // 2) + 3 * HIDDEN * 128  # q, o; k, v; the MLP
    expected = 4 * (num_tokens * (LAYERS - layer) * a_layer + num_answers * HIDDEN * VOCAB)
    assert step_flops(backbone, layer, texts) == expected
    num_run = sum(answer + 1 for _, answer in SHORT)
    expected = 4 * (num_run * (LAYERS - layer) * a_layer + num_answers * HIDDEN * VOCAB)
    assert step_flops(backbone, layer, texts, answers_alone=True) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_peft_methods_step_trains_it_and_not_the_backbone(method, tmp_path):
    backbone = tiny_backbone()
    frozen = {id(parameter): parameter.clone() for parameter in backbone.model.parameters()}
    step, num_trained = peft_step(method, backbone, tmp_path)
    trained = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    assert bool(trained) == (method in CHANGE_THE_MODEL and method != "X-LoRA")
    before = [parameter.detach().clone() for parameter in trained]
    for _ in range(2):  # a half of LoRA starts at zero, and keeps the other's gradient there
        step(random_texts(backbone, SHORT[:3]))
    assert num_trained > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    for parameter in backbone.model.parameters():
        if id(parameter) in frozen and not parameter.requires_grad:
            assert torch.equal(parameter, frozen[id(parameter)])


def test_figures_for_every_method_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local_step, "MIXED_LENGTHS", SHORT)
    source, output = backbone_on_disk(tmp_path / "backbone"), tmp_path / "out"
    words = ["--backbone", source, "--device", "cpu", "--dtype", "float32", "--batch-size", "3", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["local_step", *words, "--methods", "PromptTuning,LoRA", "--output", str(output)])
    local_step.main()
    assert "LoRA" in capsys.readouterr().out
    report = json.loads((output / JSON).read_text())
    assert list(report["methods"]) == [*MIXTURES, "PromptTuning", "LoRA"]
    for found in report["methods"].values():
        assert found["steps"] == 2 and found["tokens_per_second"] > 0 and found["peak_bytes"] > 0
        assert all(ratios == sorted(ratios) for ratios in found["time_against"].values())
    assert report["methods"][OURS]["time_against"][OURS] == [1.0, 1.0, 1.0]
    assert report["tokens_per_step"] == sum(map(sum, SHORT)) / 2
    assert (output / DOCUMENT).read_text() == document(report)
    assert len(rows(report)) == 6
