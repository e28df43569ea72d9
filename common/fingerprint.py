"""A backbone's fingerprint: a hash of its files. Imports no torch, nor transformers but for a hub id."""

import hashlib
import json
from typing import Any

from common.backbone_source import STORED
from common.hub import local_directory


def fingerprint(source: str, quantization: str) -> str:
    """Hash the files of weights, tokenizer and architecture as they are on disk, and the quantization's name.

    `source` is a directory or a hub id. Files rather than loaded tensors: two devices may round a quantized weight
    differently, and a quantized model of several GB hashes slowly. Raises ValueError where there are no safetensors.
    """
    directory = local_directory(source)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"backbone {source!r} has no *.safetensors: save it with save_pretrained, which writes them")
    digest = hashlib.blake2b(quantization.encode(), digest_size=16)
    architecture = json.loads((directory / "config.json").read_text())
    for name in ("transformers_version", "_name_or_path"):  # who saved it and where, not what it is
        architecture.pop(name, None)
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    for path in [*weights, directory / "tokenizer.json"]:
        if path.is_file():
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def is_quantized(source: str) -> bool:
    """Tell whether the files of a directory or a hub id hold quantized weights."""
    return json.loads((local_directory(source) / "config.json").read_text()).get("quantization_config") is not None


def fingerprint_of(model: Any) -> str | None:
    """Return the fingerprint of the files that a transformers model was loaded from; None where there are none."""
    try:
        return fingerprint(model.name_or_path, quantization_of(model)) if model.name_or_path else None
    except (OSError, ValueError):
        return None


def quantization_of(model: Any) -> str:
    """Name a loaded model's quantization as the key `quantization` does, or, if it has no such value, by its method."""
    described: Any = getattr(model.config, "quantization_config", None)
    if described is None:
        return "none"
    if model.name_or_path and is_quantized(model.name_or_path):
        return STORED
    values = described if isinstance(described, dict) else described.to_dict()
    if values.get("load_in_8bit"):
        return "int8"
    if values.get("load_in_4bit"):
        return f"{values.get('bnb_4bit_quant_type')}{'-double' if values.get('bnb_4bit_use_double_quant') else ''}"
    if "Int8WeightOnlyConfig" in str(values.get("quant_type")):
        return "int8-weights"
    return str(values.get("quant_method"))
