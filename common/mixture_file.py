"""A mixture on disk: the two files that peft reads and writes, so that a run directory is a peft adapter. No torch."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec

# peft's names.
WEIGHTS, CARD = "adapter_model.safetensors", "adapter_config.json"
PEFT_TYPE = "MIXTURE_OF_PROMPTS"
# Where the arrays stand in the module tree of a PeftModel.
PREFIX = "base_model.prompt_mixture."


@dataclass(frozen=True)
class SavedMixture:
    """A mixture as it lies on disk; `fingerprint` names the backbone that it was trained on."""

    spec: MixtureSpec
    arrays: Arrays
    fingerprint: str


def weights_bytes(arrays: Arrays, prefix: str = PREFIX) -> bytes:
    """Write arrays as safetensors under peft's names; an adapter of peft's own has them already."""
    # safetensors writes an array's memory as it lies, whatever its order.
    written: bytes = save({prefix + name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return written


def card(spec: MixtureSpec, backbone: str, fingerprint: str, server_round: int) -> dict[str, Any]:
    """Describe a mixture as peft's configuration does: everything but its values."""
    return {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": backbone,
        "inference_mode": True,
        "fingerprint": fingerprint,
        "server_round": server_round,
        **spec_fields(spec),
    }


def spec_fields(spec: MixtureSpec) -> dict[str, Any]:
    """Return a spec as JSON knows it: keys are texts, tuples are lists."""
    described = asdict(spec)
    described["kv_shapes"] = {str(layer): list(sizes) for layer, sizes in spec.kv_shapes.items()}
    described["tasks"] = list(spec.tasks)
    return described


def spec_of_fields(described: dict[str, Any]) -> MixtureSpec:
    """Read a spec; other keys are ignored. Raises KeyError, TypeError or ValueError where it is none."""
    described = {"frozen_gate": False, "encoder_size": 0} | described  # mixtures of before there were these
    values = {field.name: described[field.name] for field in fields(MixtureSpec)}
    values["kv_shapes"] = {int(layer): tuple(sizes) for layer, sizes in values["kv_shapes"].items()}
    values["tasks"] = tuple(values["tasks"])
    return MixtureSpec(**values)


def read_mixture(directory: Path) -> SavedMixture:
    """Read a saved mixture. Raises ValueError, with what is wrong, when it is missing, damaged or of another method."""
    for name in (CARD, WEIGHTS):
        if not (directory / name).is_file():
            if any(directory.glob("client-*")):
                raise ValueError(
                    f"{directory} has no mixture for all clients: give one's own in it, client-0 or another"
                )
            raise ValueError(f"{directory} has no {name}: give the directory of a run that finished a round")
    try:
        described = json.loads((directory / CARD).read_text(encoding="utf-8"))
        if described["peft_type"] != PEFT_TYPE:
            raise ValueError(f"it holds a {described['peft_type']}, which peft itself loads")
        spec = spec_of_fields(described)
        arrays = {name.removeprefix(PREFIX): array for name, array in load_file(directory / WEIGHTS).items()}
        expected = spec.all()
        for name in expected.keys() | arrays.keys():
            if name not in expected or name not in arrays or arrays[name].shape != expected[name]:
                raise ValueError(f"array {name} does not agree with {CARD}")
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("it holds values that are not finite float32")
        return SavedMixture(spec, arrays, str(described["fingerprint"]))
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{directory} is no saved mixture, or damaged ({reason}): choose another run") from None


def check_fingerprint(saved: SavedMixture, directory: Path, backbone: str, fingerprint: str) -> None:
    """Raise ValueError unless the mixture was trained on this backbone: prompts mean nothing to another."""
    if saved.fingerprint != fingerprint:
        raise ValueError(
            f"the mixture in {directory} was trained on a backbone with the fingerprint {saved.fingerprint}, but "
            f"{backbone} has {fingerprint}: choose the same weights, tokenizer and quantization"
        )
