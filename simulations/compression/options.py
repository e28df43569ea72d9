"""The options of `fedmops compress`, checked before anything heavy."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from common.backbone_source import BUILT_IN, locate
from common.fingerprint import is_quantized
from common.near_names import did_you_mean
from simulations.pretraining.options import Device

MAGNITUDE, WANDA, TWO_FOUR = METHODS = ("magnitude", "wanda", "2:4")
NUM_CALIBRATION = 128


@dataclass(frozen=True)
class Options:
    """The options under their names; `num_calibration` None: the usual number, where the method looks at texts."""

    backbone: str
    output: Path
    method: str
    sparsity: float
    calibration: str
    num_calibration: int | None
    seed: int
    device: Device

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS, otherwise=f"expected one of {', '.join(METHODS)}")
            raise ValueError(f"unknown method {self.method!r}: {hint}")
        if not 0 < self.sparsity < 1:
            raise ValueError(
                f"sparsity must be above 0 and below 1, the share of zeros, got {self.sparsity}: change it"
            )
        if self.method == TWO_FOUR and self.sparsity != 0.5:
            raise ValueError(f"sparsity must be 0.5 for method 2:4, got {self.sparsity}: leave it out or choose wanda")
        if self.num_calibration is not None and self.method == MAGNITUDE:
            raise ValueError("num-calibration has no effect on method magnitude, which looks at no text: leave it out")
        if self.num_calibration is not None and self.num_calibration < 1:
            raise ValueError(f"num-calibration must be at least 1, got {self.num_calibration}: raise it")
        if self.calibration != BUILT_IN and not Path(self.calibration).is_file():
            raise ValueError(f"calibration {self.calibration!r} is neither {BUILT_IN!r} nor a file: pass one of them")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise ValueError(f"{self.output} is not an empty directory: pass another, or remove it")
        if is_quantized(locate(self.backbone)):
            raise ValueError(f"backbone {self.backbone!r} is quantized: pass its original, and quantize in the run")

    @property
    def num_texts(self) -> int:
        """How many texts the method looks at."""
        return 0 if self.method == MAGNITUDE else self.num_calibration or NUM_CALIBRATION

    @property
    def command(self) -> str:
        """The command line that repeats it."""
        words = ["fedmops", "compress", self.backbone, str(self.output), "--method", self.method]
        words += ["--sparsity", str(self.sparsity), "--calibration", self.calibration]
        words += ["--num-calibration", str(self.num_texts)] if self.num_texts else []
        return shlex.join([*words, "--seed", str(self.seed), "--device", str(self.device)])
