"""Evaluation against a plain loop over single examples."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import CPU, byte_tokenizer, examples, mixture_for, tiny_backbone, tiny_llama, tiny_prompted, tokenized

from client import evaluator
from client.evaluator import evaluate
from common.batches import collate
from common.injection import PromptedBackbone


def loop_over(texts, logits_of_one):
    """Return each answer's negative log-likelihood; `logits_of_one` gives the last logits, or all, of one text."""
    values = []
    for text in texts:
        log_p = torch.log_softmax(logits_of_one(text).double(), dim=-1)
        before = len(log_p) - len(text.answer_ids) - 1  # the last logits predict what would follow the answer
        values.append(-sum(float(log_p[before + n, token]) for n, token in enumerate(text.answer_ids)))
    return values


def plain_logits(text):
    return tiny_llama()(input_ids=torch.tensor([text.prompt_ids + text.answer_ids])).logits[0]


def assert_scores_equal(scores, some, texts, values):
    assert list(scores) == sorted({example.task for example in some})
    for task, score in scores.items():
        rows = [n for n, example in enumerate(some) if example.task == task]
        assert score.nll == pytest.approx(sum(values[n] for n in rows), rel=1e-5)  # float32
        # The end of an answer is a token to predict, but no character.
        assert score.num_tokens == sum(len(some[n].output.encode()) + 1 for n in rows)
        assert score.num_characters == sum(len(some[n].output) for n in rows)
        assert score.num_examples == len(rows)


def test_scores_of_the_backbone_equal_a_loop():
    some = examples(13)
    texts = tokenized(some)
    assert_scores_equal(evaluate(tiny_backbone(), some, texts).scores, some, texts, loop_over(texts, plain_logits))


def test_scores_of_the_mixture_equal_a_loop():
    some = examples(13)
    texts = tokenized(some)
    backbone = tiny_backbone()
    prompted = PromptedBackbone(backbone, mixture_for(backbone))

    def logits_of_one(text):
        single = collate([text], 2, CPU)
        with torch.no_grad():
            return prompted.logits(single)[0][0]

    values = loop_over(texts, logits_of_one)
    assert values != pytest.approx(loop_over(texts, plain_logits), rel=1e-3)
    assert_scores_equal(evaluate(prompted, some, texts).scores, some, texts, values)


def test_characters_are_counted_not_bytes():
    some = [dataclasses.replace(examples(1)[0], output="école")]
    scores = evaluate(tiny_backbone(), some, tokenized(some)).scores
    (score,) = scores.values()
    assert (score.num_characters, score.num_tokens) == (5, 7)


def test_order_and_batches_change_nothing(monkeypatch):
    some = examples(13)
    backbone = tiny_backbone()
    expected = evaluate(backbone, some, tokenized(some)).scores
    monkeypatch.setattr(evaluator, "EVALUATION_BATCH_SIZE", 3)
    for other in (some, some[::-1]):
        scores = evaluate(backbone, other, tokenized(other)).scores
        assert list(scores) == list(expected)
        for task, score in scores.items():
            # The same float32 sums, with other padding.
            assert score.nll == pytest.approx(expected[task].nll, rel=1e-5)
            assert dataclasses.replace(score, nll=0) == dataclasses.replace(expected[task], nll=0)


def test_evaluation_leaves_no_graph():
    backbone = tiny_backbone()
    prompted = PromptedBackbone(backbone, mixture_for(backbone))
    some = examples(2)
    evaluate(prompted, some, tokenized(some))
    assert all(parameter.grad is None for parameter in prompted.mixture.parameters())
    assert byte_tokenizer().pad_token_id == 2


def test_expert_use_is_the_mean_of_the_weights_by_task():
    some = examples(7)
    texts = tokenized(some)
    prompted = tiny_prompted(num_experts=4, shared_expert=True, gate="both", tasks=("shout", "turn"))
    use = evaluate(prompted, some, texts).expert_use
    assert list(use) == sorted({example.task for example in some})
    for task, weights in use.items():
        alone = [
            prompted.logits(collate([text], 2, CPU))[1][0].exp().detach().double().numpy()
            for example, text in zip(some, texts, strict=True)
            if example.task == task
        ]
        np.testing.assert_allclose(weights, np.mean(alone, axis=0), rtol=1e-4)  # float32, other padding
        assert weights[-1] == 1.0
        assert weights[:-1].sum() == pytest.approx(1.0, rel=1e-6)
