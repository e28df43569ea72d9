"""Perplexity of answers: sums that add up over tasks and clients, and the figures made of them. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerScore:
    """Negative log-likelihood of some answers (nats), with what it is divided by."""

    nll: float = 0.0
    num_tokens: int = 0
    num_characters: int = 0
    num_examples: int = 0

    def __add__(self, other: "AnswerScore") -> "AnswerScore":
        return AnswerScore(
            self.nll + other.nll,
            self.num_tokens + other.num_tokens,
            self.num_characters + other.num_characters,
            self.num_examples + other.num_examples,
        )

    @property
    def perplexity(self) -> float:
        """exp(nats per token). Depends on the tokenizer."""
        return math.exp(self.nll / self.num_tokens) if self.nll / self.num_tokens < 700 else math.inf

    @property
    def bits_per_character(self) -> float:
        """Bits per character of the answers' text: comparable between tokenizers."""
        return self.nll / math.log(2) / self.num_characters


def total(scores: Iterable[AnswerScore]) -> AnswerScore:
    """Add scores up."""
    return sum(scores, AnswerScore())


def geometric_mean(values: Iterable[float]) -> float:
    """Average perplexities so that halving any client's counts the same."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
