"""What a baseline trains in place of a mixture: the arrays of a peft adapter, or nothing. Imports no torch or peft."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

# peft's own methods; FFA-LoRA (Sun et al. 2024, arXiv 2403.12313) is LoRA whose A stays as it was drawn.
AdapterMethod = Literal["prompt-tuning", "prefix-tuning", "multitask-prompt-tuning", "lora", "ffa-lora"]
Method = Literal["mixture", "hand-written"] | AdapterMethod
ADAPTER_METHODS: tuple[str, ...] = get_args(AdapterMethod)
PROMPT_METHODS = ("prompt-tuning", "prefix-tuning", "multitask-prompt-tuning")  # virtual tokens before the text
LORA_METHODS = ("ffa-lora", "lora")
METHODS = ("mixture", *ADAPTER_METHODS, "hand-written")

# Names of arrays, as peft saves them, and what peft calls the methods.
_OF_PROMPTS = {"prompt_embeddings"}
_OF_TASKS = _OF_PROMPTS | {"prefix_task_cols", "prefix_task_rows"}
_OF_LORA = re.compile(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight")
PEFT_TYPES = {method: method.replace("-", "_").upper() for method in ADAPTER_METHODS} | {"ffa-lora": "LORA"}

# peft's name for the configuration that lies beside an adapter's weights.
PeftCard = dict[str, Any]


@dataclass(frozen=True)
class AdapterSpec:
    """The names and shapes of an adapter's arrays, under the names that peft saves them by.

    To server and wire it is a mixture of one expert without a gate. `frozen` are the arrays that no client trains,
    `tasks` those with rows of their own, in the order of the rows. The default is what trains nothing.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ()
    peft_card: PeftCard = field(default_factory=dict)

    num_experts = num_gated = 1
    has_gate = shared_expert = False

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every trained array: what a client sends back."""
        return {name: shape for name, shape in self.shapes.items() if name not in self.frozen}

    def all(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every array: what the server sends."""
        return dict(self.shapes)


def are_arrays_of(method: str, names: Iterable[str]) -> bool:
    """Say whether arrays of these names make an adapter of a method."""
    if method in PROMPT_METHODS:
        return set(names) == (_OF_TASKS if method == "multitask-prompt-tuning" else _OF_PROMPTS)
    return any(".lora_B." in name for name in names) and all(_OF_LORA.fullmatch(name) for name in names)


def frozen_arrays(method: str, names: Iterable[str]) -> frozenset[str]:
    """Return the arrays that no client trains."""
    return frozenset(name for name in names if method == "ffa-lora" and ".lora_A." in name)


def tasks_with_rows(method: str, tasks: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks that have rows of their own."""
    return tuple(tasks) if method == "multitask-prompt-tuning" else ()
