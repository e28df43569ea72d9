"""The baselines of peft: an adapter on the frozen backbone that is trained, scored and sent as a mixture is."""

# First of all: it keeps bitsandbytes, which peft imports, from warning.
from common.backbone import Backbone

# isort: split
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from peft import (
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn

from common.adapter_spec import LORA_METHODS, AdapterSpec, frozen_arrays, tasks_with_rows
from common.batches import Batch
from common.config import Config
from common.decoder import forward, linear_layers
from common.injection import PromptedBackbone
from common.mixture import Mixture, ParameterKind
from common.mixture_arrays import Arrays
from common.transfer import send

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the head
CAUSAL_LM = "CAUSAL_LM"
ENCODER = "prompt_encoder.default."


def peft_config(config: Config, num_tasks: int) -> PeftConfig:
    """Return what peft is told; what is not said here is peft's default.

    LoRA's update is scaled by 2, as FedIT's (alpha 16 at rank 8), without dropout. Soft prompts start from sampled
    vocabulary (Lester et al. 2021), multitask ones at random: peft has no sampling there.
    """
    if config.method in LORA_METHODS:
        targets = lora_targets(config)
        return LoraConfig(
            task_type=CAUSAL_LM,
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        )
    tokens = {"task_type": CAUSAL_LM, "num_virtual_tokens": config.num_virtual_tokens}
    if config.method == "prefix-tuning":
        return PrefixTuningConfig(**tokens)
    if config.method == "multitask-prompt-tuning":
        return MultitaskPromptTuningConfig(**tokens, num_tasks=num_tasks, prompt_tuning_init="RANDOM")
    return PromptTuningConfig(**tokens, prompt_tuning_init="SAMPLE_VOCAB")


def lora_targets(config: Config) -> list[str]:
    """Return the names of the modules that LoRA adapts."""
    return [name.strip() for name in config.lora_targets.split(",")]


class AdaptedBackbone:
    """A backbone with a peft adapter; at the end of a `with` the backbone is plain again."""

    task_log_variances: nn.Parameter | None = None

    def __init__(self, backbone: Backbone, config: Config, tasks: Sequence[str]) -> None:
        """Draw an adapter by the run's seed. Raises ValueError for LoRA targets that the backbone has not."""
        self.backbone = backbone
        self._method = config.method
        described = peft_config(config, len(tasks))
        if isinstance(described, LoraConfig):
            _check_targets(backbone, lora_targets(config))
        with _peft_quiet(), torch.random.fork_rng(devices=[backbone.device] if backbone.device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            self._model = get_peft_model(backbone.model, described)
        self._parameters = {
            _saved_name(name): parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        frozen = frozen_arrays(config.method, self._parameters)
        for name in frozen:
            self._parameters[name].requires_grad_(False)
        self._rows = {task: row for row, task in enumerate(tasks)}
        self.spec = AdapterSpec(
            shapes={name: tuple(parameter.shape) for name, parameter in self._parameters.items()},
            frozen=frozen,
            tasks=tasks_with_rows(config.method, tasks),
            peft_card=json.loads(json.dumps(described.to_dict() | {"inference_mode": True}, default=sorted)),
        )

    @property
    def trainee(self) -> "AdaptedBackbone":
        """What is trained."""
        return self

    def __enter__(self) -> "AdaptedBackbone":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the adapter out of the backbone. Only LoRA is in it, the others stand before it."""
        if self._method in LORA_METHODS:
            self._model.unload()

    def task_ids(self, tasks: Sequence[str], device: torch.device) -> Int[Tensor, " batch"]:
        """Return the rows of tasks. Raises ValueError for a task that no client trains."""
        for task in tasks:
            if task not in self._rows:
                raise ValueError(f"{self._method} has no prompt for the task {task!r}, which no client trains on")
        return send(torch.tensor([self._rows[task] for task in tasks]), device)

    def trained_parameters(self) -> dict[ParameterKind, list[nn.Parameter]]:
        """Return what training changes."""
        return {"prompts": [self._parameters[name] for name in self.spec.trainable()]}

    @torch.no_grad()
    def load_arrays(self, arrays: Arrays) -> None:
        """Take over the values of all arrays of the spec. Raises ValueError for arrays of another adapter."""
        if {name: array.shape for name, array in arrays.items()} != self.spec.shapes:
            raise ValueError(f"the adapter that was sent does not fit method={self._method} on this backbone")
        for name, parameter in self._parameters.items():
            parameter.copy_(torch.from_numpy(arrays[name]))

    def arrays(self) -> Arrays:
        """Return a copy of all arrays."""
        return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in self._parameters.items()}

    def trained_arrays(self) -> Arrays:
        """Return a copy of what training changed, as it is sent back."""
        arrays = self.arrays()
        return {name: arrays[name] for name in self.spec.trainable()}

    def with_states(self, batch: Batch) -> Batch:
        """Return a batch as it is: an adapter acts in all layers."""
        return batch

    def log_weights(self, batches: Sequence[Batch]) -> Float[Tensor, "texts experts"]:
        """Return the log of 1 for each text."""
        return torch.zeros(sum(len(batch.tasks) for batch in batches), 1, device=self.backbone.device)

    def logits(
        self, batch: Batch, log_weights: Float[Tensor, "batch experts"] | None = None
    ) -> tuple[Float[Tensor, "batch num_logits vocab"], Float[Tensor, "batch experts"]]:
        """Run the backbone with the adapter on a batch, as PromptedBackbone does; the one weight is 1.

        peft's own forward gives no positions to a padded batch, so that a text's logits would depend on its
        neighbours' lengths: here peft makes prompts and prefixes, and positions count from the last of them.
        """
        if log_weights is None:
            log_weights = self.log_weights([batch])
        if self._method in LORA_METHODS:
            logits = forward(self.backbone, batch.input_ids, batch.attention_mask, batch.num_logits)
            return logits, log_weights
        length = self._model.active_peft_config.num_virtual_tokens
        before = batch.attention_mask.new_ones(len(batch.tasks), length)
        mask = torch.cat((before, batch.attention_mask), dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        shared = {"attention_mask": mask, "use_cache": False, "logits_to_keep": batch.num_logits}
        if self._method == "prefix-tuning":
            output = self.backbone.model(
                input_ids=batch.input_ids,
                position_ids=positions[:, length:],
                past_key_values=self._model.get_prompt(len(batch.tasks)),
                **shared,
            )
        else:
            ids = self.task_ids(batch.tasks, self.backbone.device) if self.spec.tasks else None
            prompts = self._model.get_prompt(len(batch.tasks), ids)
            embeddings = self._model.word_embeddings(batch.input_ids)
            embeddings = torch.cat((prompts.to(embeddings.dtype), embeddings), dim=1)
            output = self.backbone.model(inputs_embeds=embeddings, position_ids=positions, **shared)
        return output.logits.float(), log_weights


# What is tuned, with what: a mixture, or a baseline's adapter.
Tuned = PromptedBackbone | AdaptedBackbone
Trainee = Mixture | AdaptedBackbone


def _check_targets(backbone: Backbone, targets: Sequence[str]) -> None:
    """Raise ValueError for a target that is no linear layer of the backbone: peft passes over it in silence."""
    linear = linear_layers(backbone.model)
    for target in targets if targets != [ALL_LINEAR] else ():
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(
                f"lora-targets must be linear layers of the backbone ({known}) or {ALL_LINEAR} alone, got {target!r}"
            )


@contextmanager
def _peft_quiet() -> Iterator[None]:
    """Keep to itself what peft 0.21.2 warns of and a user cannot mend."""
    with warnings.catch_warnings():
        # It asks transformers 5.23 by a name that goes in version 6.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        # GPT-2's layers are stored transposed, as it finds out by itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # Of all-linear on a mixture of experts: it looks for layers under the names of another release.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", UserWarning)
        yield


def _saved_name(name: str) -> str:
    """Return the name that peft saves a parameter by."""
    if name.startswith(ENCODER):
        return name.removeprefix(ENCODER).replace("embedding.weight", "prompt_embeddings")
    return name.replace(".default.", ".")
