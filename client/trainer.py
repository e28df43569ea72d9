"""Local training: the same steps for simulation, deployment and centralised runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from client.adapter import Trainee, Tuned
from client.task_weights import JointLoss
from common.answer_loss import answer_nll
from common.batches import IGNORED, Batch, TokenizedExample
from common.config import Config, TaskWeights
from common.mixture import ParameterKind
from common.passes import batches_of_passes

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainSettings:
    """How a client trains."""

    num_steps: int
    batch_size: int
    learning_rate: float
    gate_learning_rate: float
    balance_weight: float
    task_weights: TaskWeights = "size"
    task_weight_learning_rate: float = 0.0
    pass_tokens: int = 4096


def settings_of(config: Config, num_steps: int) -> TrainSettings:
    """Return how a run's clients train."""
    return TrainSettings(
        num_steps=num_steps,
        batch_size=config.batch_size,
        pass_tokens=config.pass_tokens,
        learning_rate=config.learning_rate,
        gate_learning_rate=config.gate_learning_rate,
        balance_weight=config.balance_weight,
        task_weights=config.task_weights,
        task_weight_learning_rate=config.task_weight_learning_rate,
    )


@dataclass(frozen=True)
class TrainResult:
    """What training says besides the trained values.

    `usage` is the gate mass that the client's examples gave each expert, `[experts]`; that of the gated ones sums to
    `num_examples`. `task_examples` counts the examples of each of the mixture's tasks, `[tasks]`.
    """

    loss: float  # mean over steps, nats per answer token, tasks unweighted
    num_examples: int
    usage: NDArray[np.float64]
    task_examples: NDArray[np.float64]
    gate_entropy: float  # mean over examples, nats: 0 when one expert takes all, log(experts) when all share


def batch_indices(num_examples: int, batch_size: int, num_steps: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield `num_steps` batches that walk through the examples in random order, again and again."""
    queue: list[int] = []
    for _ in range(num_steps):
        while len(queue) < batch_size:
            queue.extend(rng.permutation(num_examples).tolist())
        yield queue[:batch_size]
        queue = queue[batch_size:]


def balance_penalty(log_weights: Float[Tensor, "batch experts"]) -> Float[Tensor, ""]:
    """Return how far (nats) the batch's mean expert weights are from even: 0 when even, log(experts) at most."""
    mean = log_weights.exp().mean(dim=0)
    return (mean * (mean.clamp_min(1e-9) * mean.shape[0]).log()).sum()


def new_optimizer(trainee: Trainee, settings: TrainSettings) -> torch.optim.AdamW:
    """Return the optimizer of what is trained, each kind at its own rate."""
    rates: dict[ParameterKind, float] = {
        "prompts": settings.learning_rate,
        "gate": settings.gate_learning_rate,
        "task-weights": settings.task_weight_learning_rate,
    }
    by_kind = trainee.trained_parameters().items()
    groups = [{"params": trained, "lr": rates[kind]} for kind, trained in by_kind if trained]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def train_step(
    tuned: Tuned,
    batches: Sequence[Batch],
    joint_loss: JointLoss,
    balance_weight: float,
    optimizer: torch.optim.Optimizer,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch experts"]]:
    """Train on the passes of one batch; return the loss (nats per answer token, tasks unweighted) and the log weights.

    The gate weighs the experts for all texts first; then each pass adds to the gradients of prompts and weights, and at
    last the gate gets those of the weights. So the split into passes changes memory and speed, and rounding alone.
    """
    batches = [tuned.with_states(batch) for batch in batches]
    log_weights = tuned.log_weights(batches)
    weights = log_weights.detach().requires_grad_(log_weights.requires_grad)
    num_texts = len(weights)
    num_tokens = torch.stack([(batch.labels != IGNORED).sum() for batch in batches]).sum()
    optimizer.zero_grad()
    losses = []
    start = 0
    for batch in batches:
        logits = tuned.logits(batch, weights[start : start + len(batch.tasks)])[0]
        nll = answer_nll(logits, batch.labels)
        joint_loss(nll, num_tokens, batch.tasks, num_texts).backward()  # type: ignore[no-untyped-call]
        losses.append(nll.detach().sum())
        start += len(batch.tasks)
    if log_weights.requires_grad:
        gated = log_weights[:, : tuned.trainee.spec.num_gated]
        torch.autograd.backward([log_weights, balance_weight * balance_penalty(gated)], [weights.grad, None])
    torch.nn.utils.clip_grad_norm_(_parameters(optimizer), MAX_GRADIENT_NORM)
    optimizer.step()
    return torch.stack(losses).sum() / num_tokens, weights.detach()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())  # a GPU is waited for once


def train(
    tuned: Tuned,
    examples: Sequence[TokenizedExample],
    settings: TrainSettings,
    rng: np.random.Generator,
) -> TrainResult:
    """Train a mixture, or an adapter, in place for a number of steps; the backbone stays as it is.

    Raises FloatingPointError when the loss is not finite: a client must not send such an update.
    """
    trainee, backbone, spec = tuned.trainee, tuned.backbone, tuned.trainee.spec
    joint_loss = JointLoss(settings.task_weights, trainee, [example.task for example in examples])
    optimizer = new_optimizer(trainee, settings)
    losses: list[Tensor] = []
    usage = torch.zeros(spec.num_experts, dtype=torch.float64, device=backbone.device)
    entropy = torch.zeros((), dtype=torch.float64, device=backbone.device)
    tasks_seen: Counter[str] = Counter()
    batches = batch_indices(len(examples), settings.batch_size, settings.num_steps, rng)
    for indices in batches:
        passes = batches_of_passes(backbone, [examples[index] for index in indices], settings.pass_tokens)
        loss, log_weights = train_step(tuned, passes, joint_loss, settings.balance_weight, optimizer)
        losses.append(loss)
        usage += log_weights.double().exp().sum(dim=0)
        entropy += torch.special.entr(log_weights[:, : spec.num_gated].double().exp()).sum()
        tasks_seen.update(examples[index].task for index in indices)
    mean_loss = torch.stack(losses).mean().item()
    if not np.isfinite(mean_loss) or not _all_finite(_parameters(optimizer)):
        raise FloatingPointError(
            f"training diverged (loss {mean_loss:.3g}): lower learning-rate, now {settings.learning_rate}"
        )
    num_examples = settings.num_steps * settings.batch_size
    task_examples = np.array([float(tasks_seen[task]) for task in spec.tasks])
    return TrainResult(mean_loss, num_examples, usage.cpu().numpy(), task_examples, entropy.item() / num_examples)
