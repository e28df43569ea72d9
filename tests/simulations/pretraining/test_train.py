"""`fedmops pretrain`: packing and corpora, the loop's numerics, interruption and continuation, and what it leaves."""

import gzip
import json
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from common.architecture import new_llama
from common.packing import IGNORED, Position, batches, pack
from common.tokenizer import train_tokenizer
from simulations.cli import pretrain
from simulations.pretraining import corpora, loop
from simulations.pretraining.loop import schedule
from simulations.pretraining.options import Device, Options, Precision
from simulations.pretraining.train import train

LENGTH = 32


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads are slower at this size, and much slower beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_validation(monkeypatch):
    monkeypatch.setattr("simulations.pretraining.train.VALIDATION_CHARACTERS", 500)
    monkeypatch.setattr("simulations.pretraining.train.FINAL_VALIDATION_CHARACTERS", 2000)
    monkeypatch.setattr("simulations.pretraining.train.TOKENIZER_SAMPLE_DOCUMENTS", 100)


def options(output: Path, **changes: object) -> Options:
    tiny: dict[str, object] = {
        "output": output,
        "text": "skills",
        "tokenizer": None,
        "vocab_size": 259,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 32,
        "sequence_length": LENGTH,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "max_tokens": 8000,
        "max_minutes": None,
        "precision": Precision.FLOAT32,
        "storage_dtype": Precision.FLOAT32,
        "device": Device.CPU,
        "compile": False,
        "seed": 3,
        "checkpoint_minutes": 5.0,
        "resume": False,
    }
    return Options(**(tiny | changes))


def tiny_model(**changes):
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
    rest = {"sequence_length": LENGTH, "seed": 3, "attention": "eager"} | changes
    return new_llama(train_tokenizer([], 259), **sizes, **rest)


def encode(texts):
    return [[0, *map(ord, text), 1] for text in texts]


def labels_of(rows):
    return sorted(label for _, labels in rows for label in labels if label != IGNORED)


# --- Packing ---


def test_packed_labels_are_the_next_tokens():
    for ids, labels in pack([[0, 10, 11, 1], [0, 20, 1], [0, *range(30, 40), 1]], 6, pad=2):
        assert len(ids) == len(labels) == 6
        for place, label in enumerate(labels[:-1]):
            assert label in (IGNORED, ids[place + 1])


def test_a_document_that_fits_is_never_cut():
    documents = [[0, *[10 + n] * (n % 9), 1] for n in range(50)]
    rows = [ids + labels[-1:] for ids, labels in pack(documents, 16, pad=2)]
    text = "|".join(" ".join(map(str, row)) for row in rows)
    assert all(" ".join(map(str, document)) in text for document in documents)


def test_every_token_but_the_first_of_a_row_is_a_label_once():
    documents = [[0, *range(100 * n, 100 * n + n), 1] for n in range(1, 60)]
    rows = pack(documents, 16, pad=-1)
    firsts = [ids[0] for ids, _ in rows]
    starts = sum(first == 0 for first in firsts)
    tokens = sorted(token for document in documents for token in document)
    assert labels_of(rows) == tokens[starts:]  # zeros (<s>) come first in the order


def test_packing_leaves_few_places_empty():
    rows = pack(encode(islice(corpora.training_documents("skills", 0), 1024)), 128, pad=2)
    filled = sum(label != IGNORED for _, labels in rows for label in labels)
    assert filled / (128 * len(rows)) > 0.97  # measured 0.99


def test_batches_go_on_where_a_position_says():
    def stream(start):
        documents = corpora.training_documents("skills", 5)
        return batches(documents, encode, batch_size=7, length=LENGTH, pad=2, start=start)

    whole = list(islice(stream(Position()), 500))
    assert whole[-1].end.num_chunks >= 1  # more than one chunk was used
    for cut in (1, 250, 499):
        rest = islice(stream(whole[cut - 1].end), 500 - cut)
        for expected, got in zip(whole[cut:], rest, strict=True):
            assert torch.equal(expected.input_ids, got.input_ids) and torch.equal(expected.labels, got.labels)
            assert expected.end == got.end


# --- Corpora ---


def write_corpus(path: Path, num_documents: int = 600) -> Path:
    lines = "".join(json.dumps({"text": f"document number {n}"}) + "\n" for n in range(num_documents)).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_file_is_cycled_in_other_orders_without_its_held_out_part(tmp_path, name, monkeypatch):
    monkeypatch.setattr(corpora, "SHUFFLE_BUFFER_DOCUMENTS", 50)
    path = str(write_corpus(tmp_path / name))
    held_out = set(corpora.held_out_documents(path, 0))
    size = 600 - len(held_out)
    assert 0 < len(held_out) < 20
    stream = corpora.training_documents(path, 0)
    first, second = list(islice(stream, size)), list(islice(stream, size))
    assert sorted(first) == sorted(second) and first != second
    assert len(set(first)) == size and not held_out & set(first)
    assert first == list(islice(corpora.training_documents(path, 0), size))
    assert first != list(islice(corpora.training_documents(path, 1), size))


def test_skills_are_held_out_by_another_seed():
    assert next(corpora.held_out_documents("skills", 0)) != next(corpora.training_documents("skills", 0))


def test_a_line_without_text_is_named(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "good"}\n{"body": "bad"}\n')
    with pytest.raises(ValueError, match="line 2 has no string"):
        list(corpora.held_out_documents(str(path), 0))


# --- The loop ---


def test_the_schedule_warms_up_and_ends_at_zero():
    assert schedule(0.0) == 0.01
    assert schedule(0.025) == pytest.approx(0.5)
    assert schedule(0.05) == 1.0
    assert schedule(0.525) == pytest.approx(0.5)
    assert schedule(1.0) == schedule(1.1) == 0.0


def test_a_new_model_comes_from_its_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    models = [tiny_model(seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    first, same, other = (model.get_input_embeddings().weight for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert models[0].get_output_embeddings().weight is first


def test_padding_and_the_split_into_batches_do_not_change_the_loss():
    model = tiny_model()
    loss_sum = loop.new_loss(model, torch.device("cpu"), torch.float32, compiled=False)
    documents = ["abc", "de", "fghij" * 3]
    means = []
    for batch_size in (1, 3):
        stream = batches(iter(documents), encode, batch_size=batch_size, length=18, pad=2, start=Position())
        means.append(loop.mean_loss(loss_sum, list(stream)))
    with torch.no_grad():
        rows = [torch.tensor(ids) for ids, _ in pack(encode(documents), 18, pad=2)]
        log_p = [model(input_ids=row[None]).logits[0].double().log_softmax(-1) for row in rows]
    labels = [row[1] for row in pack(encode(documents), 18, pad=2)]
    picked = [-p[i, t] for p, row in zip(log_p, labels, strict=True) for i, t in enumerate(row) if t != IGNORED]
    expected = float(torch.stack(picked).mean())
    assert means == pytest.approx([expected, expected], rel=1e-6)  # float32 sums in another order


def test_interrupted_and_continued_equals_uninterrupted(tmp_path, monkeypatch):
    train(options(tmp_path / "whole"))

    real = loop.Progress.used
    calls = 0

    def used_with_ctrl_c(self, budget):
        nonlocal calls
        calls += 1
        if calls == 20:
            signal.raise_signal(signal.SIGINT)
        return real(self, budget)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Progress, "used", used_with_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(options(tmp_path / "cut"))
    assert (tmp_path / "cut" / "checkpoint" / "state.pt").is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    train(options(tmp_path / "cut", resume=True))

    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not (tmp_path / "cut" / "checkpoint").exists()


def test_training_learns_and_leaves_a_model_that_loads(tmp_path):
    app = typer.Typer()
    app.command()(pretrain)
    tiny = "--hidden-size 16 --num-layers 2 --num-heads 2 --intermediate-size 32 --num-kv-heads 1 --sequence-length 32"
    rest = "--batch-size 8 --learning-rate 1e-2 --device cpu --precision bfloat16 --max-tokens 30000"
    result = CliRunner().invoke(app, [str(tmp_path / "model"), *tiny.split(), *rest.split()])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "model" / "README.md").read_text()
    nats = float(card.split(" nats per token")[0].split()[-1])
    assert 2.0 < nats < 4.0  # an untrained model has log(259) = 5.56
    assert card.startswith("---\nlicense: apache-2.0\n") and "--max-tokens 30000" in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16 and len(tokenizer) == model.config.vocab_size == 259
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=2, do_sample=False).shape[0] == 1


def test_a_given_tokenizer_and_a_file_are_used(tmp_path):
    train_tokenizer(["document number"] * 5, 265).save_pretrained(tmp_path / "tokenizer")
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    train(options(tmp_path / "model", text=str(corpus), tokenizer=tmp_path / "tokenizer", max_tokens=1500))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 265
    assert "corpus.jsonl" in (tmp_path / "model" / "README.md").read_text()


# --- Bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": None}, "the run has no end"),
        ({"max_tokens": 0}, "max-tokens must be above 0 and finite, got 0"),
        ({"learning_rate": float("nan")}, "learning-rate must be above 0 and finite, got nan"),
        ({"sequence_length": -1}, "sequence-length must be above 0"),
        ({"text": "nothing.jsonl"}, "'nothing.jsonl' is no file"),
        ({"resume": True}, "no checkpoint to continue"),
    ],
)
def test_bad_options_are_errors(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        options(tmp_path / "model", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 100}, "vocab-size must be at least 259"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden-size 30 does not split into 4 heads"),
        ({"num_heads": 2, "num_kv_heads": 4}, "num-heads 2 must be a multiple of num-kv-heads, got 4"),
        ({"num_layers": 0}, "num-layers must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_errors_and_leave_no_directory(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(options(tmp_path / "model", **changes))
    assert not (tmp_path / "model").exists()


def test_a_used_directory_is_not_overwritten(tmp_path):
    (tmp_path / "notes").write_text("keep me")
    with pytest.raises(ValueError, match="is not an empty directory"):
        options(tmp_path)


def test_a_continuation_with_other_settings_is_an_error(tmp_path):
    chosen = options(tmp_path)
    model = tiny_model()
    chosen.checkpoint_directory.mkdir()
    progress = loop.Progress(model, loop.new_optimizer(model, 1e-2))
    progress.save(chosen.checkpoint_file, chosen.settings())
    with pytest.raises(ValueError, match="unfinished run: pass resume"):
        options(tmp_path)
    with pytest.raises(ValueError, match="seed is 4, but the checkpoint was written with 3"):
        train(options(tmp_path, resume=True, seed=4))
