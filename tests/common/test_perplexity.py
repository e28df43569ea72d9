"""Figures made of negative log-likelihoods: known answers."""

import math

import pytest

from common.perplexity import AnswerScore, geometric_mean, total


def test_known_perplexity_and_bits():
    score = AnswerScore(nll=8 * math.log(2), num_tokens=4, num_characters=2, num_examples=1)
    assert score.perplexity == pytest.approx(4.0)  # 2 bits a token
    assert score.bits_per_character == pytest.approx(4.0)  # 8 bits, 2 characters


def test_scores_add_up():
    first, second = AnswerScore(1.5, 2, 3, 4), AnswerScore(0.5, 10, 20, 30)
    assert first + second == total([first, second]) == AnswerScore(2.0, 12, 23, 34)
    assert total([]) == AnswerScore()
    # The perplexity of a sum is that of all tokens, not a mean of perplexities.
    assert total([first, second]).perplexity == pytest.approx(math.exp(2 / 12))


def test_a_huge_loss_is_infinite_perplexity_and_no_overflow():
    assert AnswerScore(nll=1e6, num_tokens=1).perplexity == math.inf


def test_the_geometric_mean_is_this():
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert geometric_mean(iter([3.0])) == pytest.approx(3.0)
    # Halving one client's perplexity counts the same, whichever it is.
    assert geometric_mean([1.0, 16.0]) == pytest.approx(geometric_mean([2.0, 8.0]))
