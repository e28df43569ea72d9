"""An example: what is asked, and the answer."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Example:
    """One instruction with its input and answer.

    `task` says what it asks for, `domain` what about, `source` in whose style it is written.
    """

    split: Split
    task: str
    domain: str
    source: str
    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """The text before the answer: instruction and input, each on its line."""
        return "".join(f"{line}\n" for line in (self.instruction, self.input) if line)
