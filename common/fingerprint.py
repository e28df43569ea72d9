"""A backbone's fingerprint: a hash of its files, and of parts of them. Imports no torch, transformers for hub ids."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.backbone_source import STORED
from common.hub import local_directory


def fingerprint(source: str, quantization: str) -> str:
    """Hash the files of weights, tokenizer and architecture as they are on disk, and the quantization's name.

    `source` is a directory or a hub id. Files rather than loaded tensors: two devices may round a quantized weight
    differently, and a quantized model of several GB hashes slowly. Raises ValueError where there are no safetensors.
    """
    parts = [quantization.encode(), *_model_parts(source), *_tokenizer_parts(source)]
    return _hash(parts)


def weights_hash(source: str) -> str:
    """Hash the files of weights and architecture alone. Raises ValueError where there are no safetensors."""
    return _hash(_model_parts(source))


def tokenizer_hash(source: str) -> str:
    """Hash the tokenizer's file alone."""
    return _hash(_tokenizer_parts(source))


def _hash(parts: list[bytes]) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _model_parts(source: str) -> list[bytes]:
    directory = local_directory(source)
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"backbone {source!r} has no *.safetensors: save it with save_pretrained, which writes them")
    architecture = json.loads((directory / "config.json").read_text())
    for name in ("transformers_version", "_name_or_path"):  # who saved it and where, not what it is
        architecture.pop(name, None)
    return [json.dumps(architecture, sort_keys=True).encode(), *map(_digest_of, weights)]


def _tokenizer_parts(source: str) -> list[bytes]:
    path = local_directory(source) / "tokenizer.json"
    return [_digest_of(path)] if path.is_file() else []


def _digest_of(path: Path) -> bytes:
    found = path.stat()
    return _digest_once(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)  # 14 GB take some 15 s, and are asked for in several combinations
def _digest_once(path: Path, size: int, modified: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


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
