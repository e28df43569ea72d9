"""The configuration of a mixture as a PEFT method: the MixtureSpec's fields, most of which can be left out."""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType, TaskType

from common.backbone_source import BUILT_IN, built_in_directory
from common.mixture_file import PEFT_TYPE
from common.mixture_spec import FORMS, GATE_KINDS, POSITIONS


def _register_type() -> PeftType:
    """Add our method to peft's PeftType, a closed Enum: peft knows its own methods only.

    These are the places where an Enum of Python 3.11 to 3.13 keeps its members. May go when peft lets others register
    a method.
    """
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_, member._value_ = PEFT_TYPE, PEFT_TYPE
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
        type.__setattr__(PeftType, PEFT_TYPE, member)
    return PeftType[PEFT_TYPE]


@dataclass
class MixtureConfig(PeftConfig):  # type: ignore[misc]
    """A mixture of prompts for `get_peft_model`; what is None is taken from the model.

    `kv_shapes` maps each layer from the injection layer on to (key/value heads, key size, value size). Raises
    ValueError for a mixture that cannot be.
    """

    task_type: str | None = None
    base_model_name_or_path: str | None = None
    num_experts: int = 16
    tokens_per_expert: int = 2
    injection_layer: int = -1  # first layer (from 0) that sees prompts; -1: the middle; void where kv_shapes are given
    gate_hidden_size: int = 64
    hidden_size: int | None = None
    kv_shapes: dict[str, list[int]] | None = None
    form: str = "kv"
    positions: str = "all"
    prompt_bias: float = 0.0
    shared_expert: bool = False
    gate: str = "input"
    task_embedding_size: int = 16
    temperature: float = 1.0
    top_k: int = 0
    tasks: list[str] = field(default_factory=list)
    learned_task_weights: bool = False
    frozen_gate: bool = False
    encoder_size: int = 0
    special_token_ids: list[int] | None = None  # never read by the gate; None: begin, end and padding
    seed: int = 0  # of the first values
    fingerprint: str | None = None  # of the backbone
    server_round: int = 0
    any_backbone: bool = False  # True: take another backbone than the mixture was trained on; never saved

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _register_type()
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        self._check()
        if self.base_model_name_or_path == BUILT_IN:  # a name of ours, which peft would look for on the hub
            self.base_model_name_or_path = str(built_in_directory())

    def _check(self) -> None:
        if self.task_type != TaskType.CAUSAL_LM:
            raise ValueError(f"task_type must be {TaskType.CAUSAL_LM.value} or left out, got {self.task_type}")
        for name in ("num_experts", "tokens_per_expert", "gate_hidden_size", "task_embedding_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, choices in (("form", FORMS), ("positions", POSITIONS), ("gate", GATE_KINDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.shared_expert and self.num_experts < 3:
            raise ValueError(f"num_experts must be at least 3 with a shared expert, got {self.num_experts}")
        gated = self.num_experts - self.shared_expert
        if not 0 <= self.top_k <= gated:
            raise ValueError(f"top_k must be from 0 to {gated}, the experts that the gate weighs, got {self.top_k}")
        if self.encoder_size:
            raise ValueError(
                "the gate of this mixture reads another model's states (gate-encoder), which is for comparisons only: "
                "train one without gate-encoder to use it"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.gate != "input" and gated > 1 and not self.tasks:
            raise ValueError(f"gate={self.gate!r} needs tasks: name those that it shall know, or choose gate='input'")

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        described: dict[str, Any] = super().to_dict()
        described.pop("any_backbone")
        return described
