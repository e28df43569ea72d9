"""What a skill is: a rule from inputs to outputs, and the instructions that ask for it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Skill:
    """A task of the built-in suite.

    `make` draws one (input, output) pair. `instructions` may appear in every split, `held_out_instructions` appear in
    the test split alone.
    """

    name: str
    domain: str
    make: Callable[[Random], tuple[str, str]]
    instructions: tuple[str, ...]
    held_out_instructions: tuple[str, ...]
