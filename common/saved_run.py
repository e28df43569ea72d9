"""A run's mixture with the backbone that it belongs to, read from the run's directory. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.backbone_source import locate
from common.config import QUANTIZATIONS
from common.fingerprint import fingerprint
from common.mixture_file import SavedMixture, check_fingerprint, read_mixture

CLIENT_STATES = ".client-states"  # a directory of what clients of a simulation keep until its end
CONFIG = "config.json"  # a run's settings, under their keys


@dataclass(frozen=True)
class SavedRun:
    """A mixture, and the backbone to use it with."""

    directory: Path
    mixture: SavedMixture
    backbone: str
    quantization: str
    chat_template: bool = False

    @property
    def source(self) -> str:
        """What transformers loads the backbone from."""
        return locate(self.backbone)


def read_run(
    directory: Path, backbone: str | None = None, quantization: str | None = None, any_backbone: bool = False
) -> SavedRun:
    """Read a run's mixture; what is not given of the backbone is as in the run.

    Raises ValueError when the directory holds no mixture, or one that was trained on another backbone and not
    `any_backbone`.
    """
    mixture = read_mixture(directory)
    if mixture.spec.encoder_size:
        raise ValueError(
            f"the gate of {directory} reads another model's states (gate-encoder), which is for comparisons only: "
            "train a run without gate-encoder to use it"
        )
    settings = _read_settings(directory, needed=backbone is None or quantization is None)
    run = SavedRun(
        directory,
        mixture,
        backbone or settings["backbone"],
        quantization or settings["quantization"],
        settings.get("chat-template") is True,
    )
    if run.quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {run.quantization!r}")
    source = run.source
    if not any_backbone:
        name = f"backbone {run.backbone!r} with quantization {run.quantization}"
        check_fingerprint(mixture, directory, name, fingerprint(source, run.quantization))
    return run


def _read_settings(directory: Path, needed: bool) -> dict[str, Any]:
    """Read a run's settings; where they are not needed, as backbone and quantization are given, they may be missing."""
    path = directory / CONFIG
    if not path.is_file():
        if not needed:
            return {}
        raise ValueError(f"{directory} has no {CONFIG}, which names a run's backbone: give backbone and quantization")
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
        return {**settings, **{key: str(settings[key]) for key in ("backbone", "quantization")}}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}): give backbone and quantization"
        ) from None
