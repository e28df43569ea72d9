"""The joint loss over tasks, against formulas written out; learned weights move and travel."""

import math

import numpy as np
import pytest
import torch
from tiny import examples, tiny_prompted, tokenized

from client.task_weights import JointLoss
from client.trainer import TrainSettings, train
from common.mixture import Mixture
from common.mixture_spec import MixtureSpec

TASKS = ("count", "shout", "turn")
# What a client holds: 6 of 10 examples shout, 3 turn, 1 counts.
HELD = ["shout"] * 6 + ["turn"] * 3 + ["count"]
BATCH = ["turn", "shout", "shout", "count"]
NLL = [3.0, 1.0, 2.5, 4.0]
NUM_TOKENS = 7


def mixture_of(tasks=TASKS, log_variances=None):
    mixture = Mixture(MixtureSpec(1, 1, 1, 2, {0: (1, 2, 2)}, tasks=tasks, learned_task_weights=bool(log_variances)))
    if log_variances:
        with torch.no_grad():
            mixture.task_log_variances.copy_(torch.tensor(log_variances))
    return mixture.double()


def loss_of(kind, mixture=None, held=HELD, batch=BATCH):
    joint = JointLoss(kind, mixture or mixture_of(), held)
    return joint(torch.tensor(NLL, dtype=torch.float64), torch.tensor(NUM_TOKENS), batch, len(batch))


def test_by_size_every_answer_token_counts_alike():
    assert loss_of("size").item() == pytest.approx(sum(NLL) / NUM_TOKENS, rel=1e-6)


def test_uniformly_every_task_counts_alike():
    n, num_tasks = 10, 3
    weights = {task: n / (num_tasks * HELD.count(task)) for task in TASKS}
    expected = sum(weights[task] * nll for task, nll in zip(BATCH, NLL, strict=True)) / NUM_TOKENS
    assert loss_of("uniform").item() == pytest.approx(expected, rel=1e-6)  # weights are float32
    mass = {task: HELD.count(task) * weights[task] for task in TASKS}
    assert list(mass.values()) == pytest.approx([n / num_tasks] * 3)


def test_tasks_of_equal_size_count_alike_by_size_and_uniformly():
    held = ["shout", "turn", "count"] * 4
    assert torch.equal(loss_of("uniform", held=held), loss_of("size", held=held))


def test_learned_weights_equal_the_formula():
    variances = dict(zip(TASKS, (0.5, -1.0, 2.0), strict=True))
    expected = sum(math.exp(-variances[task]) * nll for task, nll in zip(BATCH, NLL, strict=True)) / NUM_TOKENS
    expected += sum(variances[task] / 2 for task in BATCH) / len(BATCH)
    mixture = mixture_of(log_variances=list(variances.values()))
    assert loss_of("learned", mixture).item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_a_log_variance_is_that_by_hand():
    variances = dict(zip(TASKS, (0.5, -1.0, 2.0), strict=True))
    mixture = mixture_of(log_variances=list(variances.values()))
    loss_of("learned", mixture).backward()
    for row, task in enumerate(TASKS):
        of_task = [nll for own, nll in zip(BATCH, NLL, strict=True) if own == task]
        expected = -math.exp(-variances[task]) * sum(of_task) / NUM_TOKENS + len(of_task) / (2 * len(BATCH))
        assert float(mixture.task_log_variances.grad[row]) == pytest.approx(expected, rel=1e-12), task


def test_learned_weights_begin_as_by_size():
    assert torch.equal(loss_of("learned", mixture_of(log_variances=[0.0] * 3)), loss_of("size"))


def test_an_unknown_task_counts_with_weight_one():
    mixture = mixture_of(tasks=("shout", "turn"), log_variances=[-1.0, 0.5])
    loss = loss_of("learned", mixture)
    weights = [math.exp(-0.5), math.e, math.e, 1.0]
    expected = sum(weight * nll for weight, nll in zip(weights, NLL, strict=True)) / NUM_TOKENS
    assert loss.item() == pytest.approx(expected + (0.5 - 1.0 - 1.0 + 0.0) / 2 / 4, rel=1e-12)
    loss.backward()
    assert mixture.task_log_variances.grad.isfinite().all()


# --- In training ---


def trained(task_weights, some, **changes):
    prompted = tiny_prompted(**changes)
    settings = TrainSettings(3, 4, 0.04, 0.002, 0.02, task_weights, task_weight_learning_rate=0.05)
    result = train(prompted, tokenized(some), settings, np.random.default_rng(0))
    return prompted.mixture.trained_arrays(), result


def test_learned_weights_move_and_travel():
    arrays, result = trained("learned", examples(9), tasks=(*TASKS, "unheld"), learned_task_weights=True)
    variances = arrays["task_log_variances"]
    # Adam's steps are as long as its rate; a task that no example has stays.
    assert (np.abs(variances[:3]) > 0.04).all() and (np.abs(variances[:3]) < 0.16).all()
    assert variances[3] == 0
    assert result.task_examples.sum() == result.num_examples == 12
    assert result.task_examples[3] == 0 and (result.task_examples[:3] > 0).all()


def test_examples_are_counted_by_the_tasks_of_the_mixture():
    _, result = trained(
        "size", [example for example in examples(12) if example.task != "turn"], gate="task", tasks=TASKS
    )
    assert result.task_examples.sum() == 12
    assert result.task_examples[2] == 0
    assert trained("size", examples(9))[1].task_examples.shape == (0,)


def test_uniform_weights_change_what_is_trained_unless_tasks_are_of_one_size():
    for some, same in ((examples(9), True), (examples(10), False)):
        by_size, uniform = trained("size", some)[0], trained("uniform", some)[0]
        assert all(np.array_equal(by_size[name], uniform[name]) for name in by_size) == same


def test_the_loss_that_is_told_is_unweighted():
    prompted = tiny_prompted(tasks=TASKS, learned_task_weights=True)
    with torch.no_grad():
        prompted.mixture.task_log_variances += 3.0
    settings = TrainSettings(1, 4, 0.04, 0.002, 0.02, "learned")
    result = train(prompted, tokenized(examples(9)), settings, np.random.default_rng(0))
    assert result.loss == pytest.approx(trained_loss_of_first_step(), rel=1e-6)


def trained_loss_of_first_step():
    settings = TrainSettings(1, 4, 0.04, 0.002, 0.02)
    return train(tiny_prompted(), tokenized(examples(9)), settings, np.random.default_rng(0)).loss
