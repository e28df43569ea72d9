"""The frozen prefix: the same numbers as without, computed once, under a budget, whatever the disk does."""

import errno
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import HIDDEN, examples, tiny_backbone, tiny_prompted, tokenized

from client import prefix_cache
from client.evaluator import evaluate
from client.gate_statistics import gate_inputs
from client.prefix_cache import ABANDONED_SECONDS, PrefixCache
from client.trainer import TrainSettings, train
from common.batches import collate, pad_id
from common.decoder import decoder_layers, hidden_at, probe_kv_shapes

LAYER = 2
SETTINGS = TrainSettings(num_steps=3, batch_size=4, learning_rate=0.04, gate_learning_rate=0.002, balance_weight=0.02)
ROOMY = 2**30


@pytest.fixture(autouse=True)
def nothing_in_use(monkeypatch):
    monkeypatch.setattr(prefix_cache, "_in_use", set())


@pytest.fixture
def backbone():
    return replace(tiny_backbone(), fingerprint="tiny")


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_states_are_those_of_the_layers_below(tmp_path, backbone):
    texts = tokenized(examples(7))
    kept = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    assert list(kept) == texts  # the states do not count
    for text, with_states in zip(texts, kept, strict=True):
        alone = collate([text], pad_id(backbone.tokenizer), backbone.device)
        expected = hidden_at(backbone, LAYER, alone.input_ids, alone.attention_mask)[0]
        assert with_states.states.dtype == torch.bfloat16
        torch.testing.assert_close(with_states.states.float(), expected, rtol=2**-7, atol=1e-4)


def test_a_batch_has_states_only_if_all_of_its_texts_have(tmp_path, backbone):
    texts = tokenized(examples(4))
    kept = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    full = collate(kept, pad_id(backbone.tokenizer), backbone.device)
    assert full.hidden.shape == (*full.input_ids.shape, HIDDEN)
    assert (full.hidden[full.attention_mask == 0] == 0).all()
    assert collate([*kept[:3], texts[3]], pad_id(backbone.tokenizer), backbone.device).hidden is None


def test_training_and_scores_are_the_same_to_rounding_and_run_no_lower_layer(tmp_path, backbone):

    some = examples(12)
    texts = tokenized(some)
    kept = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    results = []
    for given in (texts, kept):
        prompted = tiny_prompted(layer=LAYER)
        passes = []
        decoder_layers(prompted.backbone.model)[0].self_attn.register_forward_hook(
            lambda *_, passes=passes: passes.append(1)
        )
        trained = train(prompted, given, SETTINGS, np.random.default_rng(1))
        scores = evaluate(prompted, some, given).scores
        results.append((trained.loss, trained.gate_entropy, sum(score.nll for score in scores.values()), len(passes)))
    (loss, entropy, nll, passes), (cached_loss, cached_entropy, cached_nll, cached_passes) = results
    assert passes == SETTINGS.num_steps + 1 and cached_passes == 0
    # Rounded to bfloat16: 8 bits.
    assert cached_loss == pytest.approx(loss, rel=5e-3) and cached_loss != loss
    assert cached_entropy == pytest.approx(entropy, rel=5e-3)
    assert cached_nll == pytest.approx(nll, rel=5e-3)


def test_the_gates_inputs_come_from_the_states(tmp_path, backbone, monkeypatch):
    texts = tokenized(examples(5))
    expected = gate_inputs(backbone, LAYER, texts)
    kept = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    monkeypatch.setattr("client.gate_statistics.hidden_at", None)
    np.testing.assert_allclose(gate_inputs(backbone, LAYER, kept), expected, rtol=0.02, atol=2e-3)


def test_the_second_asks_the_file(tmp_path, backbone, monkeypatch):
    texts = tokenized(examples(5))
    first = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    monkeypatch.setattr(prefix_cache, "hidden_at", None)
    second = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.states, other.states)
    assert len(files(tmp_path)) == 1
    assert oct((tmp_path / files(tmp_path)[0]).stat().st_mode)[-3:] == "600"


def test_backbone_layer_and_texts_have_files_of_their_own(tmp_path, backbone):
    cache, texts = PrefixCache(tmp_path, ROOMY), tokenized(examples(5))
    cache.with_states(backbone, LAYER, texts)
    cache.with_states(backbone, LAYER + 1, texts)
    cache.with_states(replace(backbone, fingerprint="another"), LAYER, texts)
    cache.with_states(backbone, LAYER, texts[1:])
    cache.with_states(backbone, LAYER, [replace(texts[0], answer_ids=[9]), *texts[1:]])
    assert len(files(tmp_path)) == 5


def bytes_of(texts):
    return sum(text.num_tokens for text in texts) * HIDDEN * 2


def test_under_a_small_budget_the_first_texts_have_states(tmp_path, backbone, caplog):
    texts = tokenized(examples(6))
    kept = PrefixCache(tmp_path, bytes_of(texts[:4]) + 1).with_states(backbone, LAYER, texts)
    assert [text.states is not None for text in kept] == [True] * 4 + [False] * 2
    assert "are kept for 4 of 6 texts" in caplog.text


def test_what_was_not_used_for_longest_goes_first(tmp_path, backbone, monkeypatch):
    texts = tokenized(examples(6))
    cache = PrefixCache(tmp_path, 2 * bytes_of(texts) + 10)
    for layer, age in ((1, 200), (2, 300)):
        cache.with_states(backbone, layer, texts)
        (path,) = [path for path in tmp_path.iterdir() if path.stat().st_mtime > time.time() - 100]
        os.utime(path, (time.time() - age,) * 2)
    older, newer = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    monkeypatch.setattr(prefix_cache, "_in_use", set())  # another process, later
    cache.with_states(backbone, 3, texts)
    assert newer.exists() and not older.exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.budget_bytes


def test_what_this_process_uses_stays(tmp_path, backbone, caplog):
    texts = tokenized(examples(6))
    cache = PrefixCache(tmp_path, bytes_of(texts) + 10)
    cache.with_states(backbone, 1, texts)
    before = files(tmp_path)
    assert all(text.states is None for text in cache.with_states(backbone, 2, texts))
    assert files(tmp_path) == before
    assert "0 of 6" in caplog.text
    assert all(text.states is not None for text in cache.with_states(backbone, 1, texts))


def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, backbone, monkeypatch, caplog):
    texts = tokenized(examples(4))

    def full(path, *_):
        (tmp_path / "x.part").write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefix_cache.os, "replace", full)
    assert PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts) == tuple(texts)
    assert "No space left on device" in caplog.text
    assert files(tmp_path) == ["x.part"]  # ours is gone


def test_an_end_half_way_leaves_nothing_that_is_taken_for_whole(tmp_path, backbone, monkeypatch):
    texts = tokenized(examples(4))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(prefix_cache, "hidden_at", stopped)
        PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    assert files(tmp_path) == []
    part = tmp_path / "killed.part"
    part.write_bytes(b"half")
    os.utime(part, (time.time() - 2 * ABANDONED_SECONDS,) * 2)
    kept = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, texts)
    assert kept[0].states is not None and not part.exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path, backbone, caplog):
    (tmp_path / "file").write_text("")
    texts = tokenized(examples(4))
    assert PrefixCache(tmp_path / "file" / "cache", ROOMY).with_states(backbone, LAYER, texts) == tuple(texts)
    assert "are not kept" in caplog.text


def test_states_of_another_text_are_refused(tmp_path, backbone):
    (kept,) = PrefixCache(tmp_path, ROOMY).with_states(backbone, LAYER, tokenized(examples(1)))
    with pytest.raises(ValueError, match="are not those of"):
        replace(kept, answer_ids=[])
    assert replace(kept, answer_ids=[], states=None).states is None


def test_past_is_kept_for_prompts_and_trains_alike(tmp_path, backbone):
    texts = tokenized(examples(12))
    cache, kv_shapes = PrefixCache(tmp_path, ROOMY), probe_kv_shapes(backbone, LAYER)
    kept = cache.with_past(backbone, kv_shapes, cache.with_states(backbone, LAYER, texts))
    other_answers = [replace(text, answer_ids=[9, 1]) for text in texts]
    again = cache.with_past(backbone, kv_shapes, other_answers)
    assert len(files(tmp_path)) == 2
    results = []
    for given in (texts, kept):
        prompted = tiny_prompted(layer=LAYER, positions="answer")
        trained = train(prompted, given, SETTINGS, np.random.default_rng(1))
        results.append((trained.loss, trained.gate_entropy))
    assert results[1] == pytest.approx(results[0], rel=5e-3) and results[1] != results[0]
    for one, other in zip(kept, again, strict=True):
        assert len(one.past) == len(one.prompt_ids) - 1 and torch.equal(one.past, other.past)


def test_past_is_left_out_where_the_budget_ends(tmp_path, backbone, caplog):
    texts = tokenized(examples(6))
    cache = PrefixCache(tmp_path, 1000)
    assert cache.with_past(backbone, probe_kv_shapes(backbone, LAYER), texts) == tuple(texts)
    assert "0 of 6" in caplog.text
