"""The settings of a run: defaults, then a preset or TOML file, then `key=value` words."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.adapter_spec import LORA_METHODS, PROMPT_METHODS
from common.backbone_source import BUILT_IN, distribution_root
from common.config import Value, default_run_config, unknown_key_message
from common.measures import TEXT_MEASURES, read_measures

GATE_KEYS = {"gate", "gate-hidden-size", "temperature", "top-k", "gate-pretraining", "gate-learning-rate"}
GATE_KEYS |= {"balance-weight", "task-embedding-size", "standardise-gate-input", "freeze-gate", "gate-encoder"}
MIXTURE_KEYS = GATE_KEYS | {"num-experts", "tokens-per-expert", "injection-layer", "prompt-form", "prompt-positions"}
MIXTURE_KEYS |= {"prompt-init", "prompt-scale", "prompt-bias", "shared-expert", "prefix-cache-gib"}
DATA_KEYS = {"columns", "skip-bad-rows"}
# Keys that have an effect on some values of another key only.
ONLY_WITH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dirichlet-alpha", "partition", ("dirichlet",)),
    ("tasks-per-client", "partition", ("pathological",)),
    ("shards-per-client", "partition", ("shard",)),
    ("task-weight-learning-rate", "task-weights", ("learned",)),
    ("task-embedding-size", "gate", ("task", "both")),
    ("prompt-scale", "prompt-init", ("random",)),
    *((key, "method", ("mixture",)) for key in sorted(MIXTURE_KEYS)),
    ("num-virtual-tokens", "method", PROMPT_METHODS),
    ("lora-rank", "method", LORA_METHODS),
    ("lora-targets", "method", LORA_METHODS),
    ("prompt-text", "method", ("hand-written",)),
    ("num-shots", "method", ("hand-written",)),
)


def presets() -> dict[str, Path]:
    """Return the presets by name: the TOML files of this directory."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def resolve(words: Sequence[str], shared: Mapping[str, Any] | None = None) -> dict[str, Value]:
    """Merge what the command line says into the defaults, or into the defaults with what runs share on top.

    A word with "=" sets a key; one without names a preset or a TOML file, at most one. Raises ValueError, with what to
    do, for anything else.
    """
    settings = default_run_config(distribution_root())
    _merge(settings, shared or {}, "shared")
    # A path may have "=" in it, as those of a sweep's runs have.
    named = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(named) > 1:
        raise ValueError(f"expected one preset or TOML file, got {' and '.join(named)}: name one, then key=value words")
    for name in named:
        _merge(settings, _read_preset(name), name)
    spoken = set()
    for word in words:
        key, separator, text = word.partition("=")
        if separator and word not in named:
            _merge(settings, {key: _parse(key, text, settings)}, "the command line")
            spoken.add(key)
    _check_effect(spoken, settings)
    return settings


def _check_effect(spoken: set[str], settings: dict[str, Value]) -> None:
    """Raise ValueError for a key on the command line that another setting makes void."""
    for key, other, wanted in ONLY_WITH:
        if key in spoken and settings[other] not in wanted:
            raise ValueError(
                f"{key} has no effect on {other}={settings[other]}: add {other}={wanted[-1]} or leave it out"
            )
    for key in sorted(spoken & {"gate-learning-rate", "balance-weight"} if settings["freeze-gate"] is True else ()):
        raise ValueError(f"{key} has no effect on a frozen gate: leave it out or leave out freeze-gate")
    measured = read_measures(str(settings["measures"]))
    if "measure-examples" in spoken and not measured:
        raise ValueError("measure-examples has no effect without measures: name some or leave it out")
    if "max-answer-tokens" in spoken and not set(measured) & set(TEXT_MEASURES):
        raise ValueError(f"max-answer-tokens has no effect without measures={' or '.join(TEXT_MEASURES)}: leave it out")
    if "client-fraction" in spoken and settings["centralised"]:
        raise ValueError("client-fraction has no effect on centralised training: leave it out")
    for key in sorted(spoken & DATA_KEYS if settings["data"] == BUILT_IN else ()):
        raise ValueError(f"{key} has no effect on data={BUILT_IN}, the built-in tasks: name data or leave it out")
    void = sorted(spoken & GATE_KEYS) if settings["num-experts"] == 1 else []
    if void:
        raise ValueError(f"{void[0]} has no effect on one expert, which has no gate: raise num-experts or leave it out")


def _read_preset(name: str) -> dict[str, Any]:
    path = presets().get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"unknown preset {name!r}: expected {', '.join(presets())}, or the path of a TOML file")
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def _merge(settings: dict[str, Value], overrides: Mapping[str, Any], source: str) -> None:
    for key, value in overrides.items():
        if key not in settings:
            raise ValueError(f"{source}: {unknown_key_message(key, list(settings))}")
        if not isinstance(value, str | int | float | bool):
            raise ValueError(f"{source}: {key} must be one value, got {value!r}")
        settings[key] = value


def _parse(key: str, text: str, settings: dict[str, Value]) -> Value:
    """Read a value as TOML reads it; text that is a text's value needs no quotes."""
    if isinstance(settings.get(key), str) and not text.startswith(('"', "'")):
        return text
    try:
        value: Value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the check of the configuration says what was expected
    return value
