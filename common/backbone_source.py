"""Where a backbone's files are: the built-in one, a directory, or the hub. Imports neither torch nor transformers."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

BUILT_IN = "skills"
STORED = "stored"  # value of quantization for a checkpoint whose files are quantized already


def distribution_root() -> Path:
    """Return the directory that the installed packages lie in: the checkout, when installed with `pip install -e`.

    Flower runs our code from an unpacked bundle without weights or history, so `__file__` leads nowhere; the installed
    distribution is what every process of the environment sees.
    """
    try:
        installed = distribution("fedmops")
    except PackageNotFoundError:
        raise ValueError(
            "fedmops is not installed in this environment: run `pip install -e .` in its checkout"
        ) from None
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlparse(origin["url"]).path))
    return Path(str(installed.locate_file("")))


def built_in_directory() -> Path:
    """Return the directory of the built-in backbone's weights."""
    return distribution_root() / "common" / "models" / BUILT_IN


def locate(backbone: str) -> str:
    """Turn a backbone's name into what transformers loads from: a directory's path, or a hub id as it is.

    Raises ValueError when the name is neither built in, nor a directory with a config.json, nor a hub id
    (owner/name or owner/name@revision).
    """
    if backbone == BUILT_IN:
        return str(built_in_directory())
    if (Path(backbone) / "config.json").is_file():
        return backbone
    looks_like_hub_id = (
        backbone.count("/") == 1 and not backbone.startswith((".", "/", "~")) and not backbone.endswith("/")
    )
    if looks_like_hub_id and not Path(backbone).exists():
        return backbone
    raise ValueError(
        f"unknown backbone {backbone!r}: expected {BUILT_IN!r}, a directory with a config.json or a hub id "
        "(owner/name, owner/name@revision)"
    )


def has_chat_template(backbone: str) -> bool | None:
    """Tell whether a backbone's tokenizer has a chat template, or None where only the hub knows it."""
    directory = Path(locate(backbone))
    if not directory.is_dir():
        return None
    if any((directory / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))


def architecture(backbone: str) -> dict[str, Any] | None:
    """Return what a backbone's config.json says, or None where only the hub knows it."""
    path = Path(locate(backbone)) / "config.json"
    if not path.is_file():
        return None
    described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return described


def num_layers(described: dict[str, Any]) -> int | None:
    """Return the number of decoder layers that a config.json names."""
    described = described.get("text_config", described)
    layers = described.get("num_hidden_layers", described.get("n_layer"))
    return layers if isinstance(layers, int) else None


def check_quantization(backbone: str, quantization: str, described: dict[str, Any]) -> None:
    """Raise ValueError unless `stored` is asked for where, and only where, the files are quantized already."""
    stored = described.get("quantization_config")
    if stored is not None and quantization != STORED:
        method = stored.get("quant_method", "an unknown method")
        raise ValueError(
            f"quantization must be {STORED} for backbone {backbone!r}, whose files are quantized by {method}, "
            f"got {quantization!r}"
        )
    if stored is None and quantization == STORED:
        raise ValueError(
            f"quantization {STORED!r} is for checkpoints that are quantized: {backbone!r} is not, use none"
        )
