"""Which examples a backbone is pruned by, and by which its price is measured. Imports no torch."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.backbone_source import BUILT_IN
from common.data import load_examples
from common.example import Example
from common.skills.suite import SKILLS
from simulations.compression.options import Options

HELD_OUT_PER_TASK = 40  # at most, as the key eval-examples of a run


@dataclass(frozen=True)
class Texts:
    """Training examples to look at while pruning, none by magnitude, and validation examples to measure by."""

    calibration: Sequence[Example]
    held_out: Sequence[Example]


def choose_texts(options: Options) -> Texts:
    """Draw the examples. Raises ValueError where a file has none of a kind that is needed."""
    per_task = -(-options.num_texts // len(SKILLS)) if options.calibration == BUILT_IN else sys.maxsize
    examples = load_examples(options.calibration, per_task, HELD_OUT_PER_TASK, "validation", options.seed)
    train = [example for example in examples if example.split == "train"]
    held_out = [example for example in examples if example.split == "validation"]
    if options.num_texts and not train:
        raise ValueError(f"calibration {options.calibration} has no rows of the split train: add some to look at")
    if not held_out:
        raise ValueError(
            f"calibration {options.calibration} has no rows of the split validation, by which perplexity is measured: "
            "name some, or add rows (a tenth is held out)"
        )
    drawn = random.Random(f"{options.seed}/calibration").sample(train, min(options.num_texts, len(train)))
    return Texts(drawn, held_out)
