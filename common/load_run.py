"""A run's result for use in Python: its backbone with its mixture, as a model of peft."""

import warnings
from pathlib import Path
from typing import Any

from common.backbone import load_model  # before peft: it silences what bitsandbytes says at its import

# isort: split
from peft import PeftModel

import common.peft_mixture  # noqa: F401  makes peft know the method
from common.peft_config import MixtureConfig
from common.saved_run import SavedRun, read_run


def load_run(
    run_directory: str | Path,
    backbone: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
    any_backbone: bool = False,
) -> tuple[PeftModel, Any]:
    """Load the model that a run left behind, and its tokenizer.

    Backbone (a name as in the settings) and quantization are the run's unless given. The model forwards, generates and
    saves as transformers' and peft's do; `forward` and `generate` also take `tasks`. Raises ValueError when the
    directory holds no mixture, or one that was trained on another backbone and not `any_backbone`.
    """
    return load_model_of(read_run(Path(run_directory), backbone, quantization, any_backbone), device)


def load_model_of(run: SavedRun, device: str) -> tuple[PeftModel, Any]:
    """Load the backbone of a run that was read, with its mixture, and its tokenizer."""
    model, tokenizer, _ = load_model(run.backbone, run.quantization, device)
    config = MixtureConfig.from_pretrained(str(run.directory))
    config.any_backbone = True  # that it is the right one was checked when the run was read
    config.base_model_name_or_path = run.source
    config.special_token_ids = sorted(tokenizer.all_special_ids)  # as in training
    with warnings.catch_warnings():
        # peft 0.21.2 asks transformers 5.23 by a name that goes in version 6.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return PeftModel.from_pretrained(model, str(run.directory), config=config), tokenizer
