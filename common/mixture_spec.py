"""What a mixture is apart from its values: kinds, sizes, and the names and shapes of its arrays. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from common.adapter_spec import AdapterSpec

Form = Literal["kv", "hidden"]
GateKind = Literal["input", "task", "both"]
Positions = Literal["all", "answer"]
FORMS: tuple[str, ...] = get_args(Form)
GATE_KINDS: tuple[str, ...] = get_args(GateKind)
POSITIONS: tuple[str, ...] = get_args(Positions)

# Standardise the gate's input; set before round 1, never trained, so they travel down only.
GATE_STATISTICS = ("gate.mean", "gate.scale")


@dataclass(frozen=True)
class MixtureSpec:
    """What fixes a mixture: how it is computed and the shapes of its arrays.

    `kv_shapes` maps each layer from the injection layer on to (key/value heads, key size, value size). `tasks` are
    those with an embedding or a learned weight, in the order of their rows.
    """

    num_experts: int
    tokens_per_expert: int
    gate_hidden_size: int
    hidden_size: int
    kv_shapes: Mapping[int, tuple[int, int, int]]
    form: Form = "kv"
    positions: Positions = "all"
    prompt_bias: float = 0.0
    shared_expert: bool = False
    gate: GateKind = "input"
    task_embedding_size: int = 16
    temperature: float = 1.0
    top_k: int = 0
    tasks: tuple[str, ...] = ()
    learned_task_weights: bool = False
    frozen_gate: bool = False
    encoder_size: int = 0  # width of what the gate reads where that is another model's states, else 0

    @property
    def num_gated(self) -> int:
        """Number of experts that the gate weighs: all but the shared one, which is the last and always on."""
        return self.num_experts - self.shared_expert

    @property
    def has_gate(self) -> bool:
        """Whether there is anything to choose from."""
        return self.num_gated > 1

    @property
    def gate_input_size(self) -> int:
        """Width of what the gate reads."""
        return self.encoder_size or self.hidden_size

    @property
    def has_task_gate(self) -> bool:
        """Whether the gate knows tasks."""
        return self.has_gate and self.gate != "input"

    @property
    def injection_layer(self) -> int:
        """The first layer (from 0) that sees prompts."""
        return min(self.kv_shapes)

    def pool(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of the pool's arrays."""
        pairs = (self.num_experts, self.tokens_per_expert)
        if self.form == "hidden":
            return {"pool.hidden": (*pairs, self.hidden_size)}
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (kv_heads, key_size, value_size) in sorted(self.kv_shapes.items()):
            shapes[f"pool.keys.{layer}"] = (*pairs, kv_heads, key_size)
            shapes[f"pool.values.{layer}"] = (*pairs, kv_heads, value_size)
        return shapes

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every trained array, pool first: what a client sends back."""
        shapes = self.pool()
        if self.has_gate and not self.frozen_gate:
            shapes |= self._trained_gate()
        if self.learned_task_weights:
            shapes["task_log_variances"] = (len(self.tasks),)
        return shapes

    def all(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every array of the mixture: what the server sends.

        Beside the trained ones these are the gate's fixed statistics, a gate that stays as it was pre-trained and,
        where the gate goes by task alone, the input gate as it was pre-trained, for tasks that have no embedding.
        """
        shapes = self.trainable()
        if self.has_gate:
            shapes |= dict.fromkeys(GATE_STATISTICS, (self.gate_input_size,))
            shapes |= self._trained_gate() | self._input_gate()
        return shapes

    def _trained_gate(self) -> dict[str, tuple[int, ...]]:
        shapes = self._input_gate() if self.gate != "task" else {}
        if self.has_task_gate:
            size = self.task_embedding_size
            shapes["gate.task_embeddings"] = (len(self.tasks), size)
            shapes["gate.query.weight"] = (size, size)
            shapes["gate.expert_keys"] = (self.num_gated, size)
        return shapes

    def _input_gate(self) -> dict[str, tuple[int, ...]]:
        return {
            "gate.hidden.weight": (self.gate_hidden_size, self.gate_input_size),
            "gate.hidden.bias": (self.gate_hidden_size,),
            "gate.output.weight": (self.num_gated, self.gate_hidden_size),
            "gate.output.bias": (self.num_gated,),
        }


def is_expertwise(name: str) -> bool:
    """Say whether an array's first axis counts experts, or gated experts."""
    return name.startswith(("pool.", "gate.output.", "gate.expert_keys"))


def is_taskwise(name: str) -> bool:
    """Say whether an array's first axis counts tasks; the last two are of peft's multitask prompt tuning."""
    return name in ("gate.task_embeddings", "task_log_variances", "prefix_task_cols", "prefix_task_rows")


Spec = MixtureSpec | AdapterSpec


def num_parameters(spec: Spec) -> int:
    """Count the trained parameters."""
    return sum(int(np.prod(dimensions)) for dimensions in spec.trainable().values())
