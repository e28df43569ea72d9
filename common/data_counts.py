"""What became of a client's data on the way to its batches: how much was cut, left out or skipped."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CutCounts:
    """What became of a split's examples that were too long: left out for their answer or prompt, or cut."""

    num_examples: int = 0
    num_answers_too_long: int = 0
    num_prompts_too_long: int = 0
    num_prompts_cut: int = 0

    @property
    def num_left_out(self) -> int:
        """Examples that are not in the split."""
        return self.num_answers_too_long + self.num_prompts_too_long

    def __add__(self, other: "CutCounts") -> "CutCounts":
        return CutCounts(
            self.num_examples + other.num_examples,
            self.num_answers_too_long + other.num_answers_too_long,
            self.num_prompts_too_long + other.num_prompts_too_long,
            self.num_prompts_cut + other.num_prompts_cut,
        )


@dataclass(frozen=True)
class DataCounts:
    """A client's counts.

    `num_bad_rows` were skipped in the data that it reads, which are its own only where `is_own`: else one data set is
    dealt out, and a row that is no example is no client's.
    """

    train: CutCounts = CutCounts()
    evaluation: CutCounts = CutCounts()
    num_bad_rows: int = 0
    is_own: bool = False


def over_all_clients(counts: Sequence[DataCounts]) -> DataCounts:
    """Add up clients' counts; bad rows of data that is dealt out count once."""
    dealt_out = max((each.num_bad_rows for each in counts if not each.is_own), default=0)
    return DataCounts(
        train=sum((each.train for each in counts), CutCounts()),
        evaluation=sum((each.evaluation for each in counts), CutCounts()),
        num_bad_rows=dealt_out + sum(each.num_bad_rows for each in counts if each.is_own),
        is_own=all(each.is_own for each in counts),
    )
