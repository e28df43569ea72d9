"""The loss against a loop over answer tokens."""

import math

import torch

from common.answer_loss import answer_nll
from common.batches import IGNORED


def test_the_loss_is_the_sum_over_answer_tokens_of_minus_log_probability():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORED, 3, 1], [0, 2, 1]])
    expected = [0.0, 0.0]
    for row in range(2):
        for position in range(3):
            if labels[row, position] != IGNORED:
                odds = [math.exp(logit) for logit in logits[row, position].tolist()]  # the position before the label
                expected[row] -= math.log(odds[labels[row, position]] / sum(odds))
    torch.testing.assert_close(answer_nll(logits, labels), torch.tensor(expected))


def test_even_logits_cost_the_log_of_the_vocabulary_a_token():
    loss = answer_nll(torch.zeros(1, 3, 7), torch.tensor([[4, 1]]))
    torch.testing.assert_close(loss, torch.tensor([2 * math.log(7)]))


def test_the_last_positions_logits_do_not_count():
    logits = torch.zeros(1, 3, 7)
    logits[0, -1] = torch.arange(7)
    assert torch.equal(answer_nll(logits, torch.tensor([[4, 1]])), answer_nll(logits * 0, torch.tensor([[4, 1]])))
