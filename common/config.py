"""The configuration of a run, read from Flower's run_config in one place."""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from common.adapter_spec import METHODS, Method
from common.backbone_source import (
    STORED,
    architecture,
    check_quantization,
    has_chat_template,
    locate,
    num_layers,
)
from common.data.mappings import parse_columns
from common.data.sources import check_data_name
from common.example import Split
from common.measures import read_measures
from common.mixture_spec import FORMS, GATE_KINDS, POSITIONS, Form, GateKind, MixtureSpec, Positions
from common.near_names import did_you_mean

Value = str | int | float | bool

QUANTIZATIONS = ("none", "nf4", "nf4-double", "fp4", "int8", "int8-weights", STORED)
COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
OWN_PARTITION = "own"
PARTITIONS = ("by-task", "by-source", "iid", "dirichlet", "pathological", "shard", OWN_PARTITION)
DEVICES = ("auto", "cpu", "cuda")
DEVICE_MAPS = ("auto", "balanced", "sequential")  # of transformers
GatePretraining = Literal["task", "like-tasks", "domain", "kmeans", "none"]
TaskWeights = Literal["uniform", "size", "learned"]
Aggregation = Literal["usage", "plain", "none"]
TooLongPrompts = Literal["cut-start", "cut-input", "leave-out"]
RANDOM_INIT, VOCABULARY_INIT = "random", "vocabulary"  # values of prompt-init that name no run directory
EVAL_SPLITS = tuple(split for split in get_args(Split) if split != "train")

# Keys of the memory and disk that a run may take, and of its attempts: what it ends with is the same.
CHANGE_NO_RESULT = ("pass-tokens", "prefix-cache-gib", "round-attempts")
WireFormat = Literal["float32", "float16", "int8"]

_AT_LEAST_ONE = (
    "num_rounds num_clients train_examples eval_examples max_sequence_tokens num_experts tokens_per_expert "
    "gate_hidden_size task_embedding_size num_local_steps batch_size pass_tokens num_virtual_tokens lora_rank "
    "tasks_per_client shards_per_client round_attempts measure_examples max_answer_tokens"
).split()
_ABOVE_ZERO = "round_timeout_seconds dirichlet_alpha prompt_scale temperature learning_rate".split()
_NOT_NEGATIVE = (
    "seed top_k gate_learning_rate balance_weight task_weight_learning_rate num_shots num_personal_steps "
    "prefix_cache_gib"
).split()
_CHOICES = {
    "quantization": QUANTIZATIONS,
    "compute_dtype": COMPUTE_DTYPES,
    "partition": PARTITIONS,
    "device": DEVICES,
    "eval_split": EVAL_SPLITS,
    "prompt_form": FORMS,
    "prompt_positions": POSITIONS,
    "gate": GATE_KINDS,
    "gate_pretraining": get_args(GatePretraining),
    "task_weights": get_args(TaskWeights),
    "method": METHODS,
    "aggregation": get_args(Aggregation),
    "wire_format": get_args(WireFormat),
    "too_long_prompts": get_args(TooLongPrompts),
}


@dataclass(frozen=True)
class Config:
    """What a run does. Keys, meaning and defaults stand in pyproject.toml under [tool.flwr.app.config]."""

    name: str
    seed: int
    num_rounds: int
    num_clients: int
    clients: str
    client_fraction: float
    round_timeout_seconds: float
    quorum: float
    round_attempts: int
    run_directory: str
    resume: bool
    data: str
    columns: str
    skip_bad_rows: bool
    train_examples: int
    eval_examples: int
    eval_split: Split
    partition: str
    dirichlet_alpha: float
    tasks_per_client: int
    shards_per_client: int
    tasks: str
    centralised: bool
    method: Method
    num_virtual_tokens: int
    lora_rank: int
    lora_targets: str
    prompt_text: str
    num_shots: int
    aggregation: Aggregation
    wire_format: WireFormat
    num_personal_steps: int
    backbone: str
    quantization: str
    compute_dtype: str
    device: str
    gpu_memory_fraction: float
    device_map: str
    prefix_cache_gib: float
    max_sequence_tokens: int
    too_long_prompts: TooLongPrompts
    chat_template: bool
    num_experts: int
    tokens_per_expert: int
    injection_layer: int
    prompt_form: Form
    prompt_positions: Positions
    prompt_init: str
    prompt_scale: float
    prompt_bias: float
    shared_expert: bool
    gate: GateKind
    gate_encoder: str
    gate_hidden_size: int
    task_embedding_size: int
    temperature: float
    top_k: int
    standardise_gate_input: bool
    gate_pretraining: GatePretraining
    freeze_gate: bool
    num_local_steps: int
    batch_size: int
    pass_tokens: int
    learning_rate: float
    gate_learning_rate: float
    balance_weight: float
    task_weights: TaskWeights
    task_weight_learning_rate: float
    measures: str
    measure_examples: int
    max_answer_tokens: int

    @property
    def last_round(self) -> int:
        """The round after which the answers are measured; what trains nothing is scored once."""
        return 1 if self.method == "hand-written" else self.num_rounds

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The measures beyond perplexity, by name."""
        return read_measures(self.measures)

    @property
    def init_run(self) -> Path | None:
        """The directory of the run that the first prompts come from, if they come from one."""
        return None if self.prompt_init in (RANDOM_INIT, VOCABULARY_INIT) else Path(self.prompt_init)

    def mixture_spec(
        self,
        hidden_size: int,
        kv_shapes: Mapping[int, tuple[int, int, int]],
        tasks: Iterable[str],
        gate_input_size: int,
    ) -> MixtureSpec:
        """Return the run's mixture on a backbone of this shape; `tasks` are those that clients train on."""
        spec = MixtureSpec(
            num_experts=self.num_experts,
            tokens_per_expert=self.tokens_per_expert,
            gate_hidden_size=self.gate_hidden_size,
            hidden_size=hidden_size,
            kv_shapes=kv_shapes,
            form=self.prompt_form,
            positions=self.prompt_positions,
            shared_expert=self.shared_expert,
            gate=self.gate,
            task_embedding_size=self.task_embedding_size,
            prompt_bias=self.prompt_bias,
            temperature=self.temperature,
            top_k=self.top_k,
            learned_task_weights=self.task_weights == "learned",
            frozen_gate=self.freeze_gate,
            encoder_size=gate_input_size if self.gate_encoder else 0,
        )
        named = spec.has_task_gate or spec.learned_task_weights
        return replace(spec, tasks=tuple(sorted(tasks)) if named else ())


def kebab(name: str) -> str:
    """Return a field's name as users write it."""
    return name.replace("_", "-")


def read_config(run_config: Mapping[str, Value]) -> Config:
    """Build and check a Config from a complete mapping of kebab-case keys.

    Raises ValueError, naming the key, for an unknown or missing key, a value of the wrong type or out of range. Light:
    nothing is loaded but the backbone's config.json where it is on disk.
    """
    fields = {kebab(field.name): field for field in dataclasses.fields(Config)}
    for key in run_config:
        if key not in fields:
            raise ValueError(unknown_key_message(key, list(fields)))
    missing = [key for key in fields if key not in run_config]
    if missing:
        raise ValueError(f"{missing[0]} is missing from the run's configuration: pyproject.toml holds its default")
    values: dict[str, Any] = {field.name: _typed(key, run_config[key], field.type) for key, field in fields.items()}
    config = Config(**values)
    _check(config)
    return config


def read_quantizations(text: str) -> list[str]:
    """Read quantizations with commas between. Raises ValueError for one that does not exist."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in QUANTIZATIONS:
            hint = did_you_mean(name, list(QUANTIZATIONS), otherwise=f"expected some of {', '.join(QUANTIZATIONS)}")
            raise ValueError(f"unknown quantization {name!r}: {hint}")
    return names


def unknown_key_message(key: str, known: list[str]) -> str:
    """Say that a key does not exist, and which ones come near."""
    hint = did_you_mean(key, known, otherwise=f"known keys: {', '.join(known)}")
    return f"unknown key {key!r}: {hint}"


def _typed(key: str, value: Value, annotation: Any) -> Value:
    kind = annotation if annotation in (int, float, bool) else str
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"{key} must be {expected}, got {value!r}")
    return value


def _check(config: Config) -> None:
    for names, lowest, expected in ((_AT_LEAST_ONE, 1, "at least 1"), (_NOT_NEGATIVE, 0, "at least 0")):
        for name in names:
            if not lowest <= getattr(config, name) < math.inf:
                raise ValueError(f"{kebab(name)} must be {expected}, got {getattr(config, name)}")
    for name in _ABOVE_ZERO:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{kebab(name)} must be above 0, got {getattr(config, name)}")
    if not abs(config.prompt_bias) < math.inf:
        raise ValueError(f"prompt-bias must be finite, got {config.prompt_bias}")
    for name in ("client_fraction", "gpu_memory_fraction", "quorum"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"{kebab(name)} must be above 0 and at most 1, got {getattr(config, name)}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{kebab(name)} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
    if config.device_map not in ("", *DEVICE_MAPS):
        raise ValueError(f"device-map must be empty or one of {', '.join(DEVICE_MAPS)}, got {config.device_map!r}")
    if config.device_map and config.device == "cpu":
        raise ValueError(
            f"device-map must be empty on a CPU, got {config.device_map!r}: leave it out or give device=cuda"
        )
    if not config.name or any(not (letter.isalnum() or letter in "-_.") for letter in config.name):
        raise ValueError(f"name must be letters, digits, '-', '_' or '.', got {config.name!r}")
    check_data_name(config.data)
    parse_columns(config.columns)
    lowest = 3 if config.shared_expert else 1
    if config.num_experts < lowest:
        raise ValueError(f"num-experts must be at least {lowest} with a shared expert, got {config.num_experts}")
    gated = config.num_experts - config.shared_expert
    if config.top_k > gated:
        raise ValueError(f"top-k must be at most {gated}, the experts that the gate weighs, got {config.top_k}")
    if config.init_run is not None and not config.init_run.is_dir():
        expected = f"{RANDOM_INIT}, {VOCABULARY_INIT} or the directory of a run"
        raise ValueError(f"prompt-init must be {expected}, got {config.prompt_init!r}")
    if config.resume and not config.run_directory:
        raise ValueError("resume needs a run-directory: that of the run to resume")
    if config.centralised and config.clients:
        raise ValueError("clients has no effect on centralised training, which has one trainer: leave one of them out")
    if config.centralised and config.aggregation == "none":
        raise ValueError(
            "aggregation must be usage or plain in centralised training, which keeps one mixture, got 'none'"
        )
    if config.method != "mixture" and config.task_weights == "learned":
        raise ValueError(f"task-weights must be size or uniform with method={config.method}, got 'learned'")
    if config.gate_encoder:
        try:
            locate(config.gate_encoder)
        except ValueError as error:
            raise ValueError(f"gate-encoder: {error}") from None
    read_measures(config.measures)
    if not all(name.strip() for name in config.lora_targets.split(",")):
        raise ValueError(f"lora-targets must be names with commas between them, got {config.lora_targets!r}")
    if config.method == "hand-written" and config.num_personal_steps:
        raise ValueError(
            f"num-personal-steps must be 0 with method=hand-written, which trains nothing, "
            f"got {config.num_personal_steps}"
        )
    if config.chat_template and has_chat_template(config.backbone) is False:
        raise ValueError(
            f"chat-template must be false, got true: backbone {config.backbone!r} has no template; leave it out or "
            "choose a backbone that was tuned for chat"
        )
    described = architecture(config.backbone)
    if described is not None:
        check_quantization(config.backbone, config.quantization, described)
    layers = None if described is None else num_layers(described)
    if config.injection_layer < -1:
        raise ValueError(f"injection-layer must be -1 (the middle) or a layer from 0, got {config.injection_layer}")
    if layers is not None and config.injection_layer >= layers:
        raise ValueError(
            f"injection-layer must be at most {layers - 1}, the last layer of {config.backbone!r}, "
            f"got {config.injection_layer}"
        )


def default_run_config(app_directory: Path) -> dict[str, Value]:
    """Read the defaults from an app's pyproject.toml."""
    with open(app_directory / "pyproject.toml", "rb") as file:
        defaults: dict[str, Value] = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    return defaults
