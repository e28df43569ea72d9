"""Local training: the same numbers as a plain loop, the same losses as before, and a backbone left as it was."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, byte_tokenizer, examples, mixture_for, tiny_llama, tiny_prompted, tokenized

from client import trainer
from client.evaluator import evaluate
from client.prefix_cache import PrefixCache
from client.trainer import TrainSettings, balance_penalty, batch_indices, train
from common import passes as passes_module
from common.backbone import load_backbone
from common.batches import IGNORED, collate
from common.injection import PromptedBackbone
from common.perplexity import total

SETTINGS = TrainSettings(num_steps=3, batch_size=4, learning_rate=0.04, gate_learning_rate=0.002, balance_weight=0.02)
GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
# Other kernels (no AVX, AVX2, two threads) were off by 4e-7 at most; a rate changed by 1 % shows by 1e-4.
GOLDEN_TOLERANCE = 1e-5


def settings(**changes):
    return TrainSettings(**(vars(SETTINGS) | changes))


def rng(seed=0):
    return np.random.default_rng(seed)


# --- One client is centralised training ---


def centralised(prompted, texts, chosen, batches, max_norm):
    """Train by torch's AdamW in a plain loop, the loss and the clipping written out."""
    mixture = prompted.mixture
    pool = [p for name, p in mixture.named_parameters() if name.startswith("pool.")]
    gate = [p for name, p in mixture.named_parameters() if name.startswith("gate.")]
    optimizers = [torch.optim.AdamW(pool, lr=chosen.learning_rate, weight_decay=0.0)]
    if gate:
        optimizers.append(torch.optim.AdamW(gate, lr=chosen.gate_learning_rate, weight_decay=0.0))
    losses = []
    for indices in batches:
        batch = collate([texts[index] for index in indices], 2, CPU)
        logits, log_weights = prompted.logits(batch)
        log_p = logits[:, :-1].log_softmax(-1)
        picked = [log_p[row, n, batch.labels[row, n]] for row, n in (batch.labels != IGNORED).nonzero()]
        loss = -torch.stack(picked).mean()
        mean = log_weights.exp().mean(0)
        penalty = (mean * (mean * len(mean)).log()).sum()
        mixture.zero_grad()
        (loss + chosen.balance_weight * penalty).backward()
        norm = torch.stack([p.grad.square().sum() for p in pool + gate]).sum().sqrt()
        for parameter in pool + gate:
            parameter.grad *= min(1.0, max_norm / float(norm))
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("max_norm", [1.0, 0.02])  # gradients here are between the two
def test_one_client_equals_centralised_training(monkeypatch, num_experts, num_steps, max_norm):
    monkeypatch.setattr(trainer, "MAX_GRADIENT_NORM", max_norm)
    texts, chosen = tokenized(examples(10)), settings(num_steps=num_steps)
    federated, plain = tiny_prompted(num_experts), tiny_prompted(num_experts)
    result = train(federated, texts, chosen, rng())
    losses = centralised(plain, texts, chosen, batch_indices(10, 4, num_steps, rng()), max_norm)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    expected = plain.mixture.trained_arrays()
    before = tiny_prompted(num_experts).mixture.trained_arrays()
    for name, array in federated.mixture.trained_arrays().items():
        # The loss is summed in another order, and Adam divides a small gradient by its size: measured 8e-7.
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5, err_msg=name)
        moved = np.abs(array - before[name]).max()
        assert moved == pytest.approx(num_steps * (0.04 if name.startswith("pool.") else 0.002), rel=0.3), name


def test_seeded_losses_are_what_they_were():
    """Golden: a change here changes results, and its commit says why."""
    some = examples(12)
    texts = tokenized(some)
    for num_steps, loss in enumerate(GOLDEN["mean_loss_after_steps"], start=1):
        prompted = tiny_prompted()
        result = train(prompted, texts, settings(num_steps=num_steps), rng(1))
        assert result.loss == pytest.approx(loss, rel=GOLDEN_TOLERANCE)
    assert result.usage == pytest.approx(GOLDEN["usage"], rel=GOLDEN_TOLERANCE)
    assert result.gate_entropy == pytest.approx(GOLDEN["gate_entropy"], rel=GOLDEN_TOLERANCE)
    perplexity = total(evaluate(prompted, some, texts).scores.values()).perplexity
    assert perplexity == pytest.approx(GOLDEN["perplexity"], rel=GOLDEN_TOLERANCE)


def test_training_learns():
    prompted = tiny_prompted()
    some = examples(8)
    texts = tokenized(some)
    before = total(evaluate(prompted, some, texts).scores.values()).perplexity
    train(prompted, texts, settings(num_steps=30), rng())
    assert total(evaluate(prompted, some, texts).scores.values()).perplexity < before / 2


def test_the_generator_decides():
    def trained(seed):
        prompted = tiny_prompted()
        train(prompted, tokenized(examples(10)), SETTINGS, rng(seed))
        return prompted.mixture.trained_arrays()

    first, same, other = trained(0), trained(0), trained(1)
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def mixed_lengths():
    """Texts of 20 to 90 tokens."""
    longer = [replace(example, input=example.input * (1 + index % 5)) for index, example in enumerate(examples(8))]
    return tokenized(longer)


@pytest.mark.parametrize("changes", [{}, {"gate": "both"}, {"positions": "answer"}, {"form": "hidden"}, {"top_k": 2}])
@pytest.mark.parametrize("kept", [False, True])
def test_passes_change_memory_and_not_the_training(changes, kept, monkeypatch, tmp_path):
    tasks = {"tasks": ("count", "shout", "turn")} if "gate" in changes else {}
    passed = []
    plain_split = passes_module.passes

    def split(*args):
        passed.append(plain_split(*args))
        return passed[-1]

    monkeypatch.setattr(passes_module, "passes", split)
    results = []
    for pass_tokens in (10_000, 100):
        prompted = tiny_prompted(**changes, **tasks)
        texts = mixed_lengths()
        if kept:
            texts = PrefixCache(tmp_path, 2**30).with_states(prompted.backbone, 2, texts)
        chosen = settings(batch_size=8, balance_weight=0.5, pass_tokens=pass_tokens, num_steps=2)
        results.append((train(prompted, texts, chosen, rng()), prompted.mixture.trained_arrays()))
    assert [len(split) for split in passed] == [1, 1, *[len(passed[2])] * 2] and len(passed[2]) > 3
    (whole, expected), (parts, got) = results
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.usage == pytest.approx(whole.usage, rel=1e-4)
    for name, array in got.items():
        # Adam's first steps are a gradient's sign: where one is nothing but rounding, that may turn.
        differing = np.abs(array - expected[name]) > 1e-4
        assert differing.mean() < 0.01, name


# --- The backbone ---


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_backbone_is_bit_identical_after_training(tmp_path, quantization):
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    backbone = load_backbone.__wrapped__(str(tmp_path), quantization, "cpu")
    texts = tokenized(examples(8))
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    assert before
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    for _ in range(2):  # an evaluation in between is when bitsandbytes would repack weights
        train(prompted, texts, SETTINGS, rng())
        evaluate(prompted, examples(8), texts)
    prompted.remove()
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_the_statistics_of_the_gate_are_not_trained():
    prompted = tiny_prompted()
    prompted.mixture.gate.mean += 0.5
    train(prompted, tokenized(examples(8)), SETTINGS, rng())
    assert torch.equal(prompted.mixture.gate.mean, torch.full((64,), 0.5))
    assert torch.equal(prompted.mixture.gate.scale, torch.ones(64))


# --- Batches ---


def test_all_examples_come_before_any_comes_again():
    walked = [index for batch in batch_indices(10, 4, 10, rng()) for index in batch]
    assert len(walked) == 40
    for start in range(0, 40, 10):
        assert sorted(walked[start : start + 10]) == list(range(10))
    assert walked[:10] != walked[10:20]


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = batch_indices(3, 7, 1, rng())
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2] and len(batch) == 7


# --- The balance penalty, usage and entropy ---


def log_weights(*rows):
    return torch.log(torch.tensor(rows))


def test_known_balance_penalties():
    assert float(balance_penalty(log_weights([0.25] * 4))) == pytest.approx(0.0, abs=1e-6)
    assert float(balance_penalty(log_weights([1.0, 0, 0, 0]))) == pytest.approx(math.log(4), rel=1e-6)
    # Sharp but even over the batch is no imbalance.
    assert float(balance_penalty(log_weights([1.0, 0], [0, 1.0]))) == pytest.approx(0.0, abs=1e-6)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(balance_penalty(log_weights([1.0, 0], [0.5, 0.5]))) == pytest.approx(expected, rel=1e-5)
    assert float(balance_penalty(torch.zeros(3, 1))) == 0.0


def test_the_balance_penalty_pushes_towards_even_and_has_no_nan():
    logits = torch.tensor([[3.0, 0.0, -1e4]], requires_grad=True)
    balance_penalty(F.log_softmax(logits, dim=-1)).backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0] > 0 > logits.grad[0, 1]


@pytest.mark.parametrize("num_experts", [1, 3])
def test_usage_sums_to_the_number_of_examples(num_experts):
    result = train(tiny_prompted(num_experts), tokenized(examples(10)), SETTINGS, rng())
    assert result.num_examples == 12
    assert result.usage.shape == (num_experts,) and result.usage.dtype == np.float64
    assert result.usage.sum() == pytest.approx(12, rel=1e-6)  # float32 softmax
    assert 0 <= result.gate_entropy <= math.log(num_experts) + 1e-6


def test_usage_and_entropy_equal_the_gates_weights():
    prompted = tiny_prompted()
    texts = tokenized(examples(4))
    batch = collate(texts, 2, CPU)
    _, weights = prompted.logits(batch)
    weights = weights.exp().detach().double()
    result = train(prompted, texts, settings(num_steps=1), rng())
    np.testing.assert_allclose(result.usage, weights.sum(0).numpy(), rtol=1e-5)
    assert result.gate_entropy == pytest.approx(float(-(weights * weights.log()).sum(1).mean()), rel=1e-5)


def test_a_loss_that_is_not_finite_is_an_error():
    prompted = tiny_prompted()
    with torch.no_grad():
        prompted.mixture.pool.values["3"][0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"training diverged \(loss nan\): lower learning-rate, now 0.04"):
        train(prompted, tokenized(examples(4)), SETTINGS, rng())


def test_an_update_that_is_not_finite_is_an_error_whatever_the_loss(monkeypatch):
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, _: next(iter(parameters)).grad.fill_(math.inf)
    )
    with pytest.raises(FloatingPointError, match=r"training diverged \(loss [0-9.]+\)"):
        train(tiny_prompted(), tokenized(examples(4)), settings(num_steps=1), rng())
