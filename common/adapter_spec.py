"""What a baseline trains in place of a mixture: the arrays of a peft adapter, or nothing. Imports no torch or peft."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

# peft's own methods; FFA-LoRA (Sun et al. 2024, arXiv 2403.12313) is LoRA whose A stays as it was drawn.
AdapterMethod = Literal["prompt-tuning", "prefix-tuning", "multitask-prompt-tuning", "lora", "ffa-lora"]
Method = Literal["mixture", "hand-written"] | AdapterMethod
ADAPTER_METHODS: tuple[str, ...] = get_args(AdapterMethod)
PROMPT_METHODS = ("prompt-tuning", "prefix-tuning", "multitask-prompt-tuning")  # virtual tokens before the text
METHODS = ("mixture", *ADAPTER_METHODS, "hand-written")

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
