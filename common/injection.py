"""Injection: a mixture inside a frozen model, from a layer on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from common.attention import Pass, Place
from common.backbone import Backbone
from common.batches import Batch
from common.decoder import (
    attention_modules,
    decoder_layers,
    entering,
    forward,
    give_back_attention,
    hidden_argument,
    hidden_at,
    keys_and_values,
    take_over_attention,
)
from common.mixture import Mixture, mean_over_input
from common.past import as_cache, compute_past


class Injection:
    """A mixture in a model, until it is removed. It acts on passes within `reading` or `continuing` only."""

    def __init__(self, model: Any, mixture: Mixture) -> None:
        self.model = model
        self.mixture = mixture
        self._current = Pass()
        self._input_mask: Tensor | None = None
        self._task_ids: Tensor | None = None
        self._gate_input: Tensor | None = None
        attentions = attention_modules(model)
        self._plain_attention = take_over_attention(model)
        eager = self._plain_attention == "eager"
        self._attentions = {layer: attentions[layer][0] for layer in mixture.spec.kv_shapes}
        for layer, module in self._attentions.items():
            module.__dict__["prompts"] = Place(layer, self._current, eager, mixture.spec.prompt_bias)
        first = decoder_layers(model)[mixture.spec.injection_layer]
        self._hook = first.register_forward_pre_hook(self._weigh_experts, with_kwargs=True)

    def remove(self) -> None:
        """Take the mixture out of the model."""
        self._hook.remove()
        for module in self._attentions.values():
            module.__dict__.pop("prompts", None)
        give_back_attention(self.model, self._plain_attention)

    @contextmanager
    def reading(
        self,
        input_mask: Int[Tensor, "batch seq"],
        tasks: Sequence[str],
        sees_prompts: Bool[Tensor, "batch run"] | None,
        gate_input: Float[Tensor, "batch hidden"] | None = None,
        log_weights: Float[Tensor, "batch experts"] | None = None,
    ) -> Iterator[Pass]:
        """Let one pass over whole texts see prompts: the gate reads the positions of `input_mask` and the tasks.

        The Pass holds the experts' log weights when the pass is over. `sees_prompts` counts only where the mixture's
        positions are "answer". With a `gate_input` the gate reads that, not the backbone's states; with `log_weights`
        it reads nothing.
        """
        spec, pool = self.mixture.spec, self.mixture.pool
        if spec.form == "kv":
            pairs = {layer: (pool.keys[str(layer)], pool.values[str(layer)]) for layer in spec.kv_shapes}
        else:
            pairs = keys_and_values(self.model, spec.injection_layer, pool.hidden)
        if log_weights is None:
            self._input_mask, self._task_ids = input_mask, self.mixture.task_ids(tasks, input_mask.device)
            self._gate_input = gate_input
        seeing = sees_prompts if spec.positions == "answer" else None
        with self.continuing(Pass(log_weights, pairs, seeing)):
            try:
                yield self._current
            finally:
                self._input_mask = self._task_ids = self._gate_input = None

    @contextmanager
    def continuing(self, state: Pass) -> Iterator[None]:
        """Let passes over further tokens of texts see the prompts as an earlier pass did."""
        self._current.__dict__.update(state.__dict__)
        try:
            yield
        finally:
            self._current.__dict__.update(Pass().__dict__)

    def _weigh_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._input_mask is not None and self._task_ids is not None:
            gate_input = self._gate_input
            if gate_input is None:
                mean = mean_over_input(hidden_argument(args, kwargs), self._input_mask)
                gate_input = mean.to(self._input_mask.device)  # the mixture's; this layer may be on another
            self._current.log_weights = self.mixture.log_weights(gate_input, self._task_ids)


class PromptedBackbone:
    """A backbone with a mixture injected from a layer on; at the end of a `with` the backbone is plain again."""

    def __init__(self, backbone: Backbone, mixture: Mixture) -> None:
        self.backbone = backbone
        self.mixture = mixture
        self._injection = Injection(backbone.model, mixture)

    @property
    def trainee(self) -> Mixture:
        """What is trained."""
        return self.mixture

    def __enter__(self) -> "PromptedBackbone":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the mixture out of the backbone."""
        self._injection.remove()

    @torch.no_grad()
    def with_states(self, batch: Batch) -> Batch:
        """Return a batch with all that its training does not change; what it lacks is computed, without gradients.

        These are the states at the injection layer and, where answers alone see prompts, the past.
        """
        spec = self.mixture.spec
        if batch.hidden is None:
            hidden = hidden_at(self.backbone, spec.injection_layer, batch.input_ids, batch.attention_mask)
            batch = replace(batch, hidden=hidden)
        if spec.positions == "answer" and batch.past is None:
            batch = replace(batch, past=compute_past(self.backbone, spec.kv_shapes, batch))
        return batch

    def log_weights(self, batches: Sequence[Batch]) -> Float[Tensor, "texts experts"]:
        """Weigh the experts for all texts of batches that have states. The gate reads instruction and input only."""
        read = []
        for batch in batches:
            assert batch.hidden is not None
            mean = mean_over_input(batch.hidden, batch.input_mask) if batch.gate_input is None else batch.gate_input
            read.append(mean.to(batch.input_mask.device))
        tasks = [task for batch in batches for task in batch.tasks]
        return self.mixture.log_weights(torch.cat(read), self.mixture.task_ids(tasks, read[0].device))

    def logits(
        self, batch: Batch, log_weights: Float[Tensor, "batch experts"] | None = None
    ) -> tuple[Float[Tensor, "batch num_logits vocab"], Float[Tensor, "batch experts"]]:
        """Run the backbone with the mixture on a batch.

        Returns the logits of the last positions, in float32, and the experts' log weights, by the gate if none are
        given. A batch's hidden states at the injection layer spare the layers below, its past the positions before.
        """
        spec, known, past, begin = self.mixture.spec, batch.past, None, 0
        if known is not None:
            batch = self.with_states(batch)
            log_weights = self.log_weights([batch]) if log_weights is None else log_weights
            past, begin = as_cache(self.backbone, spec.kv_shapes, known), known.shape[1]
        start = (
            nullcontext()
            if batch.hidden is None
            else entering(self.backbone.model, spec.injection_layer, batch.hidden[:, begin:])
        )
        # Reading first: prompts of the form hidden go through the layers on their own.
        reading = self._injection.reading(
            batch.input_mask, batch.tasks, batch.from_last_input_on[:, begin:], batch.gate_input, log_weights
        )
        with reading as passed, start:
            logits = forward(self.backbone, batch.input_ids, batch.attention_mask, batch.num_logits, past)
            assert passed.log_weights is not None
            return logits, passed.log_weights
