"""The options of `fedmops pretrain`, checked before anything heavy."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from simulations.pretraining.corpora import check_corpus

POSITIVE = ("sequence_length", "batch_size", "learning_rate", "max_tokens", "max_minutes", "checkpoint_minutes")
FREE_ON_RESUME = {
    "output",
    "max_tokens",
    "max_minutes",
    "checkpoint_minutes",
    "storage_dtype",
    "device",
    "compile",
    "resume",
}


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Options:
    """The options under their names; sizes of the model are checked where it is built."""

    output: Path
    text: str
    tokenizer: Path | None
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    sequence_length: int
    batch_size: int
    learning_rate: float
    max_tokens: int | None
    max_minutes: float | None
    precision: Precision
    storage_dtype: Precision
    device: Device
    compile: bool
    seed: int
    checkpoint_minutes: float
    resume: bool

    def __post_init__(self) -> None:
        if self.max_tokens is None and self.max_minutes is None:
            raise ValueError("the run has no end: expected a budget, pass max-tokens, max-minutes or both")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name.replace('_', '-')} must be above 0 and finite, got {value}: change it")
        if self.resume and not self.checkpoint_file.is_file():
            raise ValueError(f"{self.output} holds no checkpoint to continue: leave out resume")
        if not self.resume and self.output.exists():
            if self.checkpoint_file.is_file():
                raise ValueError(f"{self.output} holds an unfinished run: pass resume, or another directory")
            if not self.output.is_dir() or any(self.output.iterdir()):
                raise ValueError(f"{self.output} is not an empty directory: pass another, or remove it")
        check_corpus(self.text)

    @property
    def checkpoint_directory(self) -> Path:
        return self.output / "checkpoint"

    @property
    def checkpoint_file(self) -> Path:
        return self.checkpoint_directory / "state.pt"

    def plain(self) -> dict[str, object]:
        """Return the options as strings and numbers."""
        return {
            name: str(value) if isinstance(value, Path | StrEnum) else value for name, value in asdict(self).items()
        }

    def settings(self) -> dict[str, object]:
        """Return the options that a continued run must share with its beginning."""
        return {name: value for name, value in self.plain().items() if name not in FREE_ON_RESUME}
