"""Measures of answers beyond perplexity: their names, and sums that add up over tasks and clients. Imports no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

EXACT_MATCH, ROUGE_L = "exact-match", "rouge-l"
CHOICE_ACCURACY, CHOICE_ACCURACY_NORMALISED = "choice-accuracy", "choice-accuracy-normalised"
TEXT_MEASURES = (EXACT_MATCH, ROUGE_L)  # of an answer that is generated
CHOICE_MEASURES = (CHOICE_ACCURACY, CHOICE_ACCURACY_NORMALISED)  # of examples with choices alone
MEASURES = TEXT_MEASURES + CHOICE_MEASURES


@dataclass(frozen=True)
class MeasureSum:
    """A measure, from 0 to 1 of each example, summed up over some."""

    sum: float = 0.0
    count: int = 0

    def __add__(self, other: "MeasureSum") -> "MeasureSum":
        return MeasureSum(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> float:
        """The measure's mean over the examples."""
        return self.sum / self.count


Measured = Mapping[str, Mapping[str, MeasureSum]]  # task -> measure -> its sum; what was not measured is not there


def read_measures(text: str) -> tuple[str, ...]:
    """Read the key `measures`. Raises ValueError for a name that is none, or that comes twice."""
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"measures must be some of {', '.join(MEASURES)}, with commas between, got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"measures must name each measure once, got {text!r}")
    return names


def check_installed(names: Iterable[str]) -> None:
    """Raise ValueError for a measure whose package is missing."""
    if ROUGE_L in names and find_spec("rouge_score") is None:
        raise ValueError("measures: rouge-l needs the package rouge-score: pip install 'fedmops[measures]'")


def means(measured: Iterable[Mapping[str, MeasureSum]]) -> dict[str, float]:
    """Return each measure's mean over the examples of several tasks, or of several clients."""
    sums: dict[str, MeasureSum] = {}
    for measures in measured:
        for name, each in measures.items():
            sums[name] = sums.get(name, MeasureSum()) + each
    return {name: sums[name].mean for name in MEASURES if name in sums}
