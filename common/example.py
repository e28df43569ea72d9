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
    choices: tuple[str, ...] = ()  # multiple choice: all answers, of which output is one
    turns: tuple[tuple[str, str], ...] = ()  # a conversation's turns before the last question: role and text

    @property
    def question(self) -> str:
        """Instruction and input, each on its line."""
        return "".join(f"{line}\n" for line in (self.instruction, self.input) if line)

    @property
    def prompt(self) -> str:
        """The text before the answer: the question; in a conversation after the turns, each with its role."""
        if not self.turns:
            return self.question
        return "".join(f"{role}: {text}\n" for role, text in (*self.turns, ("user", self.question.rstrip("\n"))))
