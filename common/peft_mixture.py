"""A mixture of prompts as a PEFT method: importing this file makes peft load, train and save one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from common.backbone import freeze
from common.mixture import Mixture
from common.mixture_arrays import initial_arrays
from common.peft_config import MixtureConfig
from common.peft_fit import check_backbone, complete, special_ids
from common.prompted_calls import PromptedCalls

NAME, CONTAINER = "mixture_of_prompts", "prompt_mixture"


class Mixtures(nn.ModuleDict, BaseTunerLayer):  # type: ignore[misc]
    """The mixtures by adapter name, in the form that peft's reports on adapters look for."""

    adapter_layer_names = ("mixtures",)
    _active_adapter: list[str]
    _disable_adapters: bool

    @property
    def mixtures(self) -> "Mixtures":
        """The container itself."""
        return self

    def mixture(self, adapter_name: str) -> Mixture:
        """Return an adapter's mixture. Raises ValueError for a name that there is not."""
        if adapter_name not in self:
            raise ValueError(f"expected one of the adapters {', '.join(self)}, got {adapter_name}")
        found = self[adapter_name]
        assert isinstance(found, Mixture)
        return found

    def report(self, active: list[str], enabled: bool) -> None:
        """Let peft's reports say which adapters are active."""
        self._active_adapter, self._disable_adapters = active, not enabled

    def _move_adapter_to_device_of_base_layer(self, *_: Any, **__: Any) -> None:
        """Do nothing: the MixtureModel knows where its model is."""


class MixtureModel(BaseTuner):  # type: ignore[misc]
    """A frozen causal language model with mixtures of prompts, of which one is active.

    `forward` and `generate` also take `tasks`, the name of each text's task; without, tasks count as unknown. The gate
    reads up to the first label that is not -100, or a whole text without labels. `expert_weights` `[batch, experts]`
    are those of the latest texts.
    """

    prefix = CONTAINER
    uses_shared_state = True
    active_adapter: str | list[str]
    tuner_layer_cls = BaseTunerLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.prompt_mixture = Mixtures()
        self._calls: PromptedCalls | None = None
        self._enabled = True

    def inject_adapter(self, model: Any, adapter_name: str, *_: Any, **__: Any) -> None:
        """Make the mixture of a configuration that peft has added. Raises ValueError where the model does not fit."""
        config = self.peft_config[adapter_name]
        self._detach()  # what the configuration leaves out is read from a pass through the plain model
        try:
            check_backbone(model, config)
            freeze(model)
            mixture = Mixture(complete(config, model))
        finally:
            self._attach()
        if not next(mixture.parameters()).is_meta:  # peft's low_cpu_mem_usage: the values come from a file
            mixture.load_arrays(initial_arrays(mixture.spec, np.random.default_rng(config.seed)))
            mixture.to(model.device)
        self.prompt_mixture[adapter_name] = mixture.requires_grad_(False)
        if adapter_name in self.active_adapters:
            self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one mixture the active one, and the only one that is trained."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1:
            raise ValueError(f"expected one active adapter, got {', '.join(names) or 'none'}")
        self.prompt_mixture.mixture(names[0])
        self.active_adapter = names
        for name in self.prompt_mixture:
            self.set_requires_grad(name, name == names[0] and not inference_mode)
        self._attach()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Let mixtures be trained or not: the arrays that are trained at all."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            mixture = self.prompt_mixture.mixture(name)
            trained = mixture.spec.trainable()
            for array, parameter in mixture.named_parameters():
                parameter.requires_grad_(requires_grad and array in trained)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a mixture; where it was active, the first of the others becomes so."""
        self.prompt_mixture.mixture(adapter_name)
        del self.peft_config[adapter_name], self.prompt_mixture[adapter_name]
        if adapter_name in self.active_adapters:
            self.active_adapter = list(self.prompt_mixture)[:1]
            for name in self.active_adapters:
                self.set_requires_grad(name, not self.peft_config[name].inference_mode)
            self._attach()

    def unload(self) -> nn.Module:
        """Return the plain backbone."""
        self._detach()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        plain: nn.Module = self.model
        return plain

    def forward(self, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Run the model; `tasks` names one for each text. Raises ValueError where the gate has nothing to read."""
        with self._asking(tasks):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Generate as the model does; `tasks` names one for each text, however many beams or returned sequences."""
        prompts = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        with self._asking(tasks, None if prompts is None else prompts.shape[1]):
            return self.model.generate(*args, **kwargs)

    @property
    def expert_weights(self) -> Tensor | None:
        """The experts' weights `[batch, experts]` for the latest texts that were read, a row for each beam."""
        return None if self._calls is None else self._calls.expert_weights

    @contextmanager
    def _asking(self, tasks: Sequence[str] | None, prompt_length: int | None = None) -> Iterator[None]:
        if self._calls is None:
            yield
            return
        with self._calls.asking(tasks, prompt_length):
            yield

    def _attach(self) -> None:
        """Put the active mixture into the model; none where adapters are disabled or gone."""
        self._detach()
        self.prompt_mixture.report(self.active_adapters, self._enabled)
        for name in self.active_adapters if self._enabled else []:
            if name not in self.prompt_mixture:  # peft names the first one before it is made
                continue
            ids = self.peft_config[name].special_token_ids
            mixture = self.prompt_mixture.mixture(name)
            self._calls = PromptedCalls(self.model, mixture, special_ids(self.model) if ids is None else ids)

    def _detach(self) -> None:
        if self._calls is not None:
            self._calls.remove()
            self._calls = None

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._attach()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        self.prompt_mixture[adapter_name].to(self.model.device)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Do nothing: a mixture is float32."""

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError("prompts are chosen for each input, so no weights can hold them: use unload instead")

    def _create_and_replace(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a mixture replaces no module")

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        return {name: array for name, array in state_dict.items() if f"{CONTAINER}.{adapter_name}." in name}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"{CONTAINER}.{adapter_name}.", f"{CONTAINER}.", 1)


if MixtureConfig().peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name=NAME, config_cls=MixtureConfig, model_cls=MixtureModel, prefix=CONTAINER)
