"""A mixture inside a transformers model as others call it: forward and generate, with a key/value cache or without."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.attention import Pass
from common.batches import IGNORED
from common.injection import Injection
from common.mixture import Mixture


@dataclass(frozen=True)
class Read:
    """What a cache carries of the pass that filled it: whose prompts its texts see, and with which weights."""

    mixture: int  # identity
    passed: Pass


class PromptedCalls:
    """Takes the place of a model's forward until it is removed, so that generate, which calls it, sees prompts too.

    In a pass over whole texts the gate reads them, up to each one's last input token; a cache that the pass fills keeps
    the experts' weights, and later passes that go on from it use those.
    """

    def __init__(self, model: Any, mixture: Mixture, special_ids: Collection[int]) -> None:
        self.mixture = mixture
        self.expert_weights: Tensor | None = None  # of the latest texts that were read, [batch, experts]
        self._model = model
        self._special_ids = sorted(special_ids)
        self._tasks: Sequence[str] | None = None
        self._prompt_length: int | None = None  # of the texts that generate lengthens
        self._running = False
        self._injection = Injection(model, mixture)
        self._overridden = model.__dict__.get("forward")
        self._forward = model.forward
        self.__signature__ = inspect.signature(model.forward)  # generate and trainers look at it
        model.__dict__["forward"] = self

    def remove(self) -> None:
        """Take the mixture out of the model."""
        self._injection.remove()
        del self._model.__dict__["forward"]
        if self._overridden is not None:
            self._model.__dict__["forward"] = self._overridden

    @contextmanager
    def asking(self, tasks: Sequence[str] | None, prompt_length: int | None = None) -> Iterator[None]:
        """Let calls within be of these tasks, one a text; generate says how long its prompts are, padding included."""
        self._tasks, self._prompt_length = tasks, prompt_length
        try:
            yield
        finally:
            self._tasks = self._prompt_length = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. Raises ValueError where the gate has nothing to read, or a cache is not this mixture's."""
        if self._running:  # hidden prompts pass through the model themselves
            return self._forward(*args, **kwargs)
        if self._model.training and torch.is_grad_enabled() and self._model.is_activation_checkpointing:
            raise ValueError("gradient checkpointing would run layers again without their prompts: switch it off")
        given = dict(zip(self.__signature__.parameters, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        self._running = True
        try:
            if cache is not None and cache.get_seq_length() > 0:
                return self._go_on(cache, given)
            return self._read(given)
        finally:
            self._running = False

    def _read(self, given: dict[str, Any]) -> Any:
        token_ids, mask = self._texts(given)
        last_input = last_input_positions(mask, given.get("labels"))
        if self._prompt_length is not None:
            last_input = torch.full_like(last_input, self._prompt_length - 1)
            if token_ids.shape[1] < self._prompt_length:
                raise ValueError("the gate reads a whole prompt at once: leave out prefill_chunk_size")
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        special = torch.isin(token_ids, torch.tensor(self._special_ids, device=token_ids.device))
        input_mask = mask.bool() & ~special & (positions <= last_input[:, None])
        if self.mixture.gate is not None and not input_mask.any(dim=1).all():
            row = int(input_mask.any(dim=1).int().argmin())
            raise ValueError(
                f"text {row} has nothing that the gate may read: expected an input before the first label, "
                f"labels {IGNORED}, that is neither padding nor special tokens"
            )
        tasks = self._tasks_of(token_ids.shape[0])
        with self._injection.reading(input_mask.long(), tasks, positions >= last_input[:, None]) as passed:
            output = self._forward(**given)
            read = Read(id(self.mixture), Pass(passed.log_weights, passed.pairs))
        assert read.passed.log_weights is not None
        self.expert_weights = read.passed.log_weights.detach().exp()
        for part in output.values() if isinstance(output, dict) else output:
            if hasattr(part, "get_seq_length"):
                part.read_by_mixture = read
        return output

    def _go_on(self, cache: Any, given: dict[str, Any]) -> Any:
        token_ids, _ = self._texts(given)
        read: Read | None = getattr(cache, "read_by_mixture", None)
        if read is None or read.mixture != id(self.mixture) or read.passed.log_weights is None:
            raise ValueError("the cache's texts were not read by this mixture: begin with an empty cache")
        if read.passed.log_weights.shape[0] != token_ids.shape[0]:
            raise ValueError(
                f"the cache holds {read.passed.log_weights.shape[0]} texts, but {token_ids.shape[0]} go on: "
                "begin with an empty cache"
            )
        with self._injection.continuing(read.passed):
            return self._forward(**given)

    def _texts(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask; left-padded texts get the positions that they have alone."""
        token_ids, mask = given.get("input_ids"), given.get("attention_mask")
        if token_ids is None:
            raise ValueError("input_ids are missing: the gate tells special tokens by them, so give no inputs_embeds")
        if mask is None:
            return token_ids, torch.ones_like(token_ids)
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise ValueError("attention_mask must be [batch, seq] with a mixture: leave out a cache_implementation")
        takes_positions = "position_ids" in self.__signature__.parameters and given.get("position_ids") is None
        if takes_positions and not mask[:, 0].all():
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, -token_ids.shape[1] :]
        return token_ids, mask

    def _tasks_of(self, num_texts: int) -> Sequence[str]:
        """Return a task for each text; generate has copied each one for its beams or its return sequences."""
        if self._tasks is None:
            return [""] * num_texts
        copies = num_texts // max(len(self._tasks), 1)
        if copies * len(self._tasks) != num_texts or (self._prompt_length is None and copies != 1):
            raise ValueError(f"tasks must name one task for each of {num_texts} texts, got {len(self._tasks)}")
        return [task for task in self._tasks for _ in range(copies)]


def last_input_positions(mask: Tensor, labels: Tensor | None) -> Tensor:
    """Return each text's last input position `[batch]`: the one before its first label, else its last token."""
    seq = mask.shape[1]
    last_token = seq - 1 - mask.bool().flip(1).int().argmax(dim=1)
    if labels is None:
        return last_token
    is_label = labels.to(mask.device) != IGNORED
    return torch.where(is_label.any(dim=1), is_label.int().argmax(dim=1) - 1, last_token)
