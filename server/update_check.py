"""The checks of what clients send before it is used: the server trusts none."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import astuple

import numpy as np

from common.config import QUANTIZATIONS, kebab
from common.measures import TEXT_MEASURES, Measured
from common.mixture_spec import Spec
from common.perplexity import AnswerScore
from common.wire.preparation import PrepareReply
from common.wire.rounds import EvaluateReply, TrainReply

# Mass that rounding may add to or take from the sum of an update's expert use.
USAGE_TOLERANCE = 1e-3
# Trained keys, values and gate weights are around 1; what is far beyond would drown the other clients.
LARGEST_ROOT_MEAN_SQUARE = 1e3


def check_update(update: TrainReply, spec: Spec) -> None:
    """Raise ValueError, naming the array, unless names, shapes, dtypes and values are what training gives."""
    expected = spec.trainable()
    for name in expected:
        if name not in update.arrays:
            raise ValueError(f"array {name} is missing")
    for name, array in update.arrays.items():
        if name not in expected:
            raise ValueError(f"array {name} is unknown")
        if array.dtype != np.float32:
            raise ValueError(f"array {name} is {array.dtype}, expected float32")
        if array.shape != expected[name]:
            raise ValueError(f"array {name} has shape {list(array.shape)}, expected {list(expected[name])}")
        size = math.sqrt(np.mean(np.square(array, dtype=np.float64)))  # a float32 squared is finite here
        if not math.isfinite(size):
            raise ValueError(f"array {name} holds values that are not finite")
        if size > LARGEST_ROOT_MEAN_SQUARE:
            raise ValueError(
                f"array {name} has root mean square {size:.3g}, expected {LARGEST_ROOT_MEAN_SQUARE:g} at most"
            )
    if update.num_examples < 1:
        raise ValueError(f"num-examples is {update.num_examples}, expected at least 1")
    if update.usage.shape != (spec.num_experts,):
        raise ValueError(f"usage has shape {list(update.usage.shape)}, expected [{spec.num_experts}]")
    if not np.isfinite(update.usage).all() or (update.usage < 0).any():
        raise ValueError("usage holds values that are negative or not finite")
    gated = update.usage[: spec.num_gated].sum() if spec.has_gate else update.usage.mean()
    if abs(gated / update.num_examples - 1) > USAGE_TOLERANCE:
        raise ValueError(f"usage sums to {gated:g}, expected num-examples, {update.num_examples}")
    if spec.shared_expert and abs(update.usage[-1] / update.num_examples - 1) > USAGE_TOLERANCE:
        raise ValueError(
            f"usage of the shared expert is {update.usage[-1]:g}, expected num-examples, {update.num_examples}"
        )
    if update.task_examples.shape != (len(spec.tasks),):
        raise ValueError(f"task-examples has shape {list(update.task_examples.shape)}, expected [{len(spec.tasks)}]")
    if not np.isfinite(update.task_examples).all() or (update.task_examples < 0).any():
        raise ValueError("task-examples holds values that are negative or not finite")
    of_tasks = update.task_examples.sum()
    if of_tasks > update.num_examples:
        raise ValueError(f"task-examples sums to {of_tasks:g}, expected num-examples, {update.num_examples}, at most")
    if not np.isfinite(update.loss):
        raise ValueError(f"loss is {update.loss}")
    if not np.isfinite(update.gate_entropy):
        raise ValueError(f"gate-entropy is {update.gate_entropy}")


def check_evaluate_reply(reply: EvaluateReply, spec: Spec) -> None:
    """Raise ValueError, naming the task, unless the experts' mean weights are what a gate gives."""
    for task, weights in reply.expert_use.items():
        gated, shared = weights[: spec.num_gated], weights[spec.num_gated :]
        too_large = weights.max() > 1 + USAGE_TOLERANCE
        if too_large or abs(gated.sum() - 1) > USAGE_TOLERANCE or (shared < 1 - USAGE_TOLERANCE).any():
            raise ValueError(f"expert-use of task {task!r} is {weights.tolist()}, expected weights that sum to 1")


def check_prepare_reply(reply: PrepareReply) -> None:
    """Raise ValueError, naming the thing, unless shapes and values are what the gate's statistics can be."""
    for name in ("fingerprint", "weights_hash", "tokenizer_hash"):
        if not re.fullmatch("[0-9a-f]{32}", getattr(reply, name)):
            raise ValueError(f"{kebab(name)} is {getattr(reply, name)[:40]!r}, expected 32 hexadecimal digits")
    if reply.quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {reply.quantization[:40]!r}, expected one of {', '.join(QUANTIZATIONS)}")
    tasks, hidden = len(reply.tasks), reply.gate_input_size
    if len(reply.domains) != tasks or len(set(reply.tasks)) != tasks:
        raise ValueError(f"{tasks} tasks with {len(reply.domains)} domains, expected one of each distinct task")
    for name, shape in (("counts", (tasks,)), ("sums", (tasks, hidden)), ("squares", (tasks, hidden))):
        array = getattr(reply, name)
        if array.shape != shape or array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite float64 {list(shape)}, got {array.dtype} {list(array.shape)}")
    if (reply.counts < 1).any():
        raise ValueError("counts must be at least 1 for every task")
    _check_data_counts(reply)


def _check_data_counts(reply: PrepareReply) -> None:
    """Raise ValueError, naming the split, unless counts are those of the examples that are trained on or scored."""
    num_scored = sum(score.num_examples for score in reply.scores.values())
    for name, counts, num_left in (
        ("train", reply.data_counts.train, reply.counts.sum()),
        ("evaluation", reply.data_counts.evaluation, num_scored),
    ):
        if min(astuple(counts)) < 0 or counts.num_examples - counts.num_left_out != num_left:
            raise ValueError(f"the {name} split's counts are {counts}, but {num_left:g} examples are left")
        if counts.num_prompts_cut > num_left:
            raise ValueError(f"{counts.num_prompts_cut} prompts of {num_left:g} {name} examples are cut")
    if reply.data_counts.num_bad_rows < 0:
        raise ValueError(f"num-bad-rows is {reply.data_counts.num_bad_rows}, expected at least 0")


def check_measured(measured: Measured, scores: Mapping[str, AnswerScore], wanted: Collection[str]) -> None:
    """Raise ValueError, naming measure and task, unless what was asked for, and no more, is told of the scored tasks.

    Choices may be missing where a task's examples have none.
    """
    for task, measures in measured.items():
        if task not in scores:
            raise ValueError(f"task {task!r} is measured, but it has no score")
        for name, each in measures.items():
            if name not in wanted:
                raise ValueError(f"measure {name!r} of task {task!r} was not asked for")
            if each.count > scores[task].num_examples:
                raise ValueError(
                    f"measure {name!r} of task {task!r} is over {each.count} examples, expected "
                    f"{scores[task].num_examples} at most"
                )
    for name in (name for name in wanted if name in TEXT_MEASURES):
        for task in scores:
            if name not in measured.get(task, {}):
                raise ValueError(f"measure {name!r} of task {task!r} is missing")
