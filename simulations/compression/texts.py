"""Which examples a backbone is pruned by, and by which its price is measured. Imports no torch."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.backbone_source import BUILT_IN
from common.data.load import load_examples
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
    if options.num_texts and not train:
        raise ValueError(f"calibration {options.calibration} has no rows of the split train: add some to look at")
    held_out = _held_out(examples, f"calibration {options.calibration}")
    drawn = random.Random(f"{options.seed}/calibration").sample(train, min(options.num_texts, len(train)))
    return Texts(drawn, held_out)


def held_out_examples(data: str, seed: int) -> list[Example]:
    """Return the examples by which a backbone's price is measured. Raises ValueError where the data has none."""
    return _held_out(load_examples(data, 1, HELD_OUT_PER_TASK, "validation", seed), f"data {data}")


def _held_out(examples: Sequence[Example], named: str) -> list[Example]:
    held_out = [example for example in examples if example.split == "validation"]
    if not held_out:
        raise ValueError(
            f"{named} has no rows of the split validation, by which perplexity is measured: name some, or add rows (a "
            "tenth is held out)"
        )
    return held_out
