"""From examples to batches of token ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from common.example import Example
from common.prompt_tokens import PromptWay, prompt_ids
from common.transfer import send


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids of a prompt and of its answer, which ends with the end-of-text token."""

    prompt_ids: list[int]
    answer_ids: list[int]
    special: list[bool]  # which prompt tokens are special ones, such as the beginning of the text
    task: str = ""
    gate_input: NDArray[np.float32] | None = field(default=None, compare=False)  # `[hidden]` of another model, if one
    prompt_cut: bool = False  # the prompt was too long
    states: Tensor | None = field(default=None, compare=False)  # `[tokens, hidden]` where the injection layer begins
    # `[tokens, pairs]` of the prompt but for its last token: see common.past
    past: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.states is not None and len(self.states) != self.num_tokens:
            raise ValueError(f"{len(self.states)} states are not those of {self.num_tokens} tokens: drop them")
        if self.past is not None and len(self.past) != len(self.prompt_ids) - 1:
            raise ValueError(f"a past of {len(self.past)} is not that of {len(self.prompt_ids)} prompt tokens: drop it")

    @property
    def num_tokens(self) -> int:
        """Length of prompt and answer together."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def num_computed(self) -> int:
        """Length of what a pass has to run: the answer and the token before it, if the past is known."""
        return self.num_tokens if self.past is None else len(self.answer_ids) + 1


@dataclass(frozen=True)
class Batch:
    """Left-padded texts, so that all answers end at the last position."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    input_mask: Int[Tensor, "batch seq"]  # 1 at instruction and input, 0 at special tokens, padding and the answer
    labels: Int[Tensor, "batch answer"]  # the last positions' token ids; IGNORED before an answer begins
    tasks: tuple[str, ...]
    gate_input: Float[Tensor, "batch hidden"] | None = None  # what the gate reads, where that is another model's
    hidden: Float[Tensor, "batch seq width"] | None = None  # states at the injection layer, which spare those below
    past: Float[Tensor, "batch past pairs"] | None = None  # of the positions before the logits: see common.past

    @property
    def num_logits(self) -> int:
        """Positions, counted from the end, whose logits the labels need: the one before each label, and the last."""
        return self.labels.shape[1] + 1

    @property
    def from_last_input_on(self) -> Bool[Tensor, "batch seq"]:
        """The answers' positions and the one before each: those whose logits are the answers' predictions."""
        lengths = (self.labels != IGNORED).sum(dim=1, keepdim=True) + 1
        to_end = torch.arange(self.input_ids.shape[1], 0, -1, device=self.labels.device)
        return to_end <= lengths


IGNORED = -100
PLAIN = PromptWay()


class AnswerTooLongError(ValueError):
    """An answer leaves no room for its prompt."""


def tokenize(example: Example, tokenizer: Any, max_sequence_tokens: int, way: PromptWay = PLAIN) -> TokenizedExample:
    """Tokenize an example. A prompt that leaves no room is cut as `way` says; an answer is never cut.

    Raises AnswerTooLongError when the answer alone is longer than `max_sequence_tokens`, and PromptTooLongError when
    the prompt is not to be cut, or cannot be cut enough.
    """
    answer_ids = answer_token_ids(example.output, tokenizer)
    room = max_sequence_tokens - len(answer_ids)
    if room < 1:
        raise AnswerTooLongError(
            f"an answer of task {example.task!r} has {len(answer_ids)} tokens, but max-sequence-tokens is "
            f"{max_sequence_tokens}: raise it or leave the example out"
        )
    ids, cut = prompt_ids(example, tokenizer, room, way)
    specials = set(tokenizer.all_special_ids)
    return TokenizedExample(ids, answer_ids, [token in specials for token in ids], example.task, prompt_cut=cut)


def answer_token_ids(answer: str, tokenizer: Any) -> list[int]:
    """Tokenize an answer; the end of the text is a part of it."""
    return [*tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]


def collate(examples: Sequence[TokenizedExample], pad_id: int, device: torch.device) -> Batch:
    """Pad examples to one left-padded batch, with states if all of them have some."""
    length = max(example.num_tokens for example in examples)
    answer_length = max(len(example.answer_ids) for example in examples)
    input_ids, attention_mask, input_mask, labels = [], [], [], []
    for example in examples:
        padding = length - example.num_tokens
        answer = len(example.answer_ids)
        input_ids.append([pad_id] * padding + example.prompt_ids + example.answer_ids)
        attention_mask.append([0] * padding + [1] * example.num_tokens)
        input_mask.append([0] * padding + [int(not special) for special in example.special] + [0] * answer)
        labels.append([IGNORED] * (answer_length - answer) + example.answer_ids)
    rows = (input_ids, attention_mask, input_mask, labels)
    tensors = [send(torch.tensor(row, dtype=torch.long), device) for row in rows]
    read = [example.gate_input for example in examples if example.gate_input is not None]
    gate_input = send(torch.from_numpy(np.stack(read)), device) if read else None
    tasks = tuple(example.task for example in examples)
    hidden = _padded([example.states for example in examples], length, device)
    # A window of the longest answer and the token before it is run; of a shorter one's prompt it holds some more.
    num_past = length - answer_length - 1
    pasts = [
        None if example.past is None else example.past[: max(0, num_past - length + example.num_tokens)]
        for example in examples
    ]
    past = _padded(pasts, num_past, device)
    return Batch(tensors[0], tensors[1], tensors[2], tensors[3], tasks, gate_input, hidden, past)


def _padded(
    rows: Sequence[Tensor | None], length: int, device: torch.device
) -> Float[Tensor, "batch length width"] | None:
    """Left-pad what all texts have; None where one has nothing."""
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return None
    padded = found[0].new_zeros(len(rows), length, found[0].shape[1])
    for target, row in zip(padded, found, strict=True):
        target[length - len(row) :] = row
    return send(padded, device)


def pad_id(tokenizer: Any) -> int:
    """Return the padding token, or the end-of-text token where there is none; masks hide either."""
    token = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if token is None else token)


def in_order_of_length(examples: Sequence[TokenizedExample], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of all examples in batches of similar length, so that little padding is computed."""
    order = sorted(range(len(examples)), key=lambda index: examples[index].num_tokens)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
