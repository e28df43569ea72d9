"""The memory that a client needs: the trainer's own step and the evaluator's own pass, on tensors without values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from client.adapter import AdaptedBackbone, Tuned
from client.task_weights import JointLoss
from client.trainer import new_optimizer, settings_of, train_step
from common.answer_loss import answer_nll
from common.backbone import Backbone
from common.batches import TokenizedExample, collate, pad_id
from common.config import Config
from common.decoder import forward, injection_layer, probe_kv_shapes
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.passes import batches_of_passes
from simulations.planning.client_data import Texts
from simulations.planning.live_bytes import LiveBytes
from simulations.planning.weightless import weightless


@dataclass(frozen=True)
class Memory:
    """What a client needs (bytes): a step holds the first three at once, an evaluation the first and the last."""

    weights: int
    trained: int  # values, gradients and the optimizer's moments
    training: int  # the most that a step holds beside them
    evaluation: int  # the most that a pass of the evaluation holds beside the weights

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return self.weights + max(self.trained + self.training, self.evaluation)


def plan_memory(config: Config, texts: Texts, tasks: Sequence[str]) -> Memory:
    """Plan what a client that trains by `config` needs at most; `tasks` are all that clients train on."""
    with weightless(config.backbone, config.quantization, config.device, config.compute_dtype) as backbone:
        held = [*backbone.model.parameters(), *backbone.model.buffers()]
        trained = training = 0
        if config.method != "hand-written":
            with LiveBytes(held) as live:
                at_first = live.live
                for _ in training_steps(backbone, config, texts, tasks):
                    trained, training = live.live - at_first, live.peak - live.live
        with LiveBytes(held) as live:
            at_first = live.live
            evaluation_pass(backbone, config, texts, tasks)
            evaluation = live.peak - at_first
        weights = at_first
        if config.gate_encoder:
            with weightless(config.gate_encoder, "none", config.device, "auto") as encoder:
                weights += LiveBytes([*encoder.model.parameters(), *encoder.model.buffers()]).live
    return Memory(weights, trained, training, evaluation)


def training_steps(backbone: Backbone, config: Config, texts: Texts, tasks: Sequence[str]) -> Iterator[None]:
    """Make two steps on a batch of the longest texts: the second has the optimizer's moments beside it."""
    settings = settings_of(config, num_steps=2)
    batches = batches_of_passes(backbone, _longest(texts, texts.num_trained, tasks), settings.pass_tokens)
    with _tuned(backbone, config, tasks) as tuned:
        optimizer = new_optimizer(tuned.trainee, settings)
        joint_loss = JointLoss(settings.task_weights, tuned.trainee, tasks)
        for _ in range(settings.num_steps):
            train_step(tuned, batches, joint_loss, settings.balance_weight, optimizer)
            yield


@torch.no_grad()
def evaluation_pass(backbone: Backbone, config: Config, texts: Texts, tasks: Sequence[str]) -> None:
    """Score a batch of the longest texts."""
    some = _longest(texts, texts.num_evaluated, tasks)
    batch = collate(some, pad_id(backbone.tokenizer), backbone.device)
    if config.method == "hand-written":
        logits = forward(backbone, batch.input_ids, batch.attention_mask, batch.num_logits)
        answer_nll(logits, batch.labels)
        return
    with _tuned(backbone, config, tasks) as tuned:
        answer_nll(tuned.logits(batch)[0], batch.labels)


@contextmanager
def _tuned(backbone: Backbone, config: Config, tasks: Sequence[str]) -> Iterator[Tuned]:
    if config.method != "mixture":
        with AdaptedBackbone(backbone, config, tasks) as adapted:
            yield adapted
        return
    shapes = probe_kv_shapes(backbone, injection_layer(backbone, config.injection_layer))
    mixture = Mixture(config.mixture_spec(backbone.hidden_size, shapes, tasks, 0)).to(backbone.device)
    with PromptedBackbone(backbone, mixture) as prompted:
        yield prompted


def _longest(texts: Texts, num_texts: int, tasks: Sequence[str]) -> list[TokenizedExample]:
    prompt = texts.longest - texts.longest_answer
    return [TokenizedExample([0] * prompt, [0] * texts.longest_answer, [False] * prompt, tasks[0])] * num_texts
