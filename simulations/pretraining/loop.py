"""The loop of `fedmops pretrain`: optimize until a budget of tokens or time is used, with checkpoints on the way."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from common.packing import IGNORED, Batch, Position
from simulations.pretraining.progress import ProgressReport

WARM_UP = 0.05  # share of the budget
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
VALIDATION_SECONDS = 30.0
STEPS_BETWEEN_REPORTS = 10

LossSum = Callable[[Batch], Tensor]  # over the batch's labels, in nats


@dataclass(frozen=True)
class Budget:
    """What ends a run, whichever comes first."""

    max_tokens: int | None
    max_seconds: float | None


@dataclass
class Progress:
    """All that changes while training and that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    position: Position = field(default_factory=Position)
    num_tokens: int = 0
    seconds: float = 0.0

    def used(self, budget: Budget) -> float:
        """Return the share of the budget that is used, from 0; 1 or more is the end."""
        tokens = self.num_tokens / budget.max_tokens if budget.max_tokens else 0.0
        return max(tokens, self.seconds / budget.max_seconds if budget.max_seconds else 0.0)

    def save(self, file: Path, settings: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; `settings` is what a continuation must agree with."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": (self.position.num_chunks, self.position.num_rows),
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "settings": settings,
        }
        unfinished = file.with_suffix(".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, file)

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(*state["position"])
        self.num_tokens, self.seconds = state["num_tokens"], state["seconds"]


class Pace:
    """Tells how fast a run goes, from where it was (re)started."""

    def __init__(self, progress: Progress, budget: Budget) -> None:
        self._first = (progress.seconds, progress.used(budget))
        self._last = (progress.seconds, progress.num_tokens)

    def describe(self, progress: Progress, budget: Budget) -> str:
        """Return tokens seen, tokens per second since the last call, and the minutes left at the mean pace."""
        seconds, used = progress.seconds - self._first[0], progress.used(budget) - self._first[1]
        left = seconds * max(1 - progress.used(budget), 0) / used
        speed = (progress.num_tokens - self._last[1]) / (progress.seconds - self._last[0])
        self._last = (progress.seconds, progress.num_tokens)
        return f"{progress.num_tokens / 1e6:.2f} M tokens  {speed:,.0f} tokens/s  {left / 60:.1f} min left"


def read_checkpoint(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint; raise ValueError if it was written under other settings."""
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    for name, value in settings.items():
        if state["settings"][name] != value:
            raise ValueError(
                f"{name.replace('_', '-')} is {value}, but the checkpoint was written with {state['settings'][name]}: "
                "pass that, or start anew in another directory"
            )
    return state


def new_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves the norms' scales alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def new_loss(model: nn.Module, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> LossSum:
    """Return the loss of a batch; the model computes in `dtype`, the loss in float32."""

    def loss_of(input_ids: Int[Tensor, "batch seq"], labels: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            logits = model(input_ids=input_ids, use_cache=False).logits
        flat = logits.float().flatten(0, 1)
        return functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")

    loss = torch.compile(loss_of) if compiled else loss_of
    return lambda batch: loss(batch.input_ids.to(device), batch.labels.to(device))


def schedule(used: float) -> float:
    """Return the factor on the learning rate: a linear warm-up, then half a cosine down to 0."""
    if used < WARM_UP:
        return max(used / WARM_UP, 0.01)  # not 0: the first step should count
    return 0.5 * (1 + math.cos(math.pi * min((used - WARM_UP) / (1 - WARM_UP), 1.0)))


def optimize(
    progress: Progress,
    batches: Iterator[Batch],
    loss_sum: LossSum,
    *,
    learning_rate: float,
    budget: Budget,
    validate: Callable[[], float],
    save: Callable[[], None],
    seconds_between_checkpoints: float,
    interrupted: Event,
    report: ProgressReport,
) -> None:
    """Train until the budget is used or `interrupted` is set, and save at the end either way.

    Raises ValueError when the loss is not finite.
    """
    start = time.monotonic() - progress.seconds
    last_validation = last_checkpoint = progress.seconds
    pace = Pace(progress, budget)
    validation = ""
    losses: list[Tensor] = []
    while (used := progress.used(budget)) < 1 and not interrupted.is_set():
        batch = next(batches)
        for group in progress.optimizer.param_groups:
            group["lr"] = learning_rate * schedule(used)
        loss = loss_sum(batch) / batch.num_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(progress.model.parameters(), MAX_GRADIENT_NORM)
        progress.optimizer.step()
        progress.optimizer.zero_grad()
        progress.num_tokens += batch.num_tokens
        progress.position = batch.end
        progress.seconds = time.monotonic() - start
        losses.append(loss.detach())
        if len(losses) < STEPS_BETWEEN_REPORTS:
            continue
        mean = float(torch.stack(losses).mean())
        losses = []
        if not math.isfinite(mean):
            raise ValueError(f"the loss became {mean}: expected a finite one, lower learning-rate ({learning_rate})")
        if progress.seconds - last_validation >= VALIDATION_SECONDS:
            validation, last_validation = f"validation {validate():.4f}  ", progress.seconds
        if progress.seconds - last_checkpoint >= seconds_between_checkpoints:
            save()
            last_checkpoint = progress.seconds
        report.update(progress.used(budget), f"loss {mean:.4f}  {validation}{pace.describe(progress, budget)}")
    save()


def mean_loss(loss_sum: LossSum, batches: Sequence[Batch]) -> float:
    """Return the mean over all labels, in nats per token."""
    with torch.no_grad():
        return sum(float(loss_sum(batch)) for batch in batches) / sum(batch.num_tokens for batch in batches)


@contextmanager
def interruption() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C (or SIGTERM) sets, so that a step is never cut; a second one kills."""
    interrupted = Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        restore()

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield interrupted
    finally:
        restore()
