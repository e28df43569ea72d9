"""A prompt as token ids: plain text or in the model's chat template; and what becomes of one that is too long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2  # of torch, and what chat templates are written for

from common.config import TooLongPrompts
from common.example import Example


@dataclass(frozen=True)
class PromptWay:
    """How prompts become tokens; the fields are keys of the configuration."""

    too_long_prompts: TooLongPrompts = "cut-start"
    chat_template: bool = False


class PromptTooLongError(ValueError):
    """A prompt is too long, and is not to be cut, or cannot be cut enough."""


def prompt_ids(example: Example, tokenizer: Any, room: int, way: PromptWay) -> tuple[list[int], bool]:
    """Return the token ids of a prompt, at most `room`, and whether it was cut.

    cut-start: the prompt loses its beginning; in a chat template the last question does, so that the template stays
    whole. cut-input: the instruction stays, and the input loses its beginning. Raises PromptTooLongError where that is
    not enough, or for leave-out.
    """
    ids = _encode(example, tokenizer, way)
    if len(ids) <= room:
        return ids, False
    if way.too_long_prompts == "cut-start" and not way.chat_template:
        return ids[-room:], True
    if way.too_long_prompts == "cut-start":
        whole = replace(example, instruction="", input=example.question.removesuffix("\n"))
        return _shortest_cut(whole, room, lambda cut: _encode(cut, tokenizer, way)), True
    if way.too_long_prompts == "cut-input":
        return _shortest_cut(example, room, lambda cut: _encode(cut, tokenizer, way)), True
    raise PromptTooLongError(f"a prompt of task {example.task!r} has {len(ids)} tokens, but there is room for {room}")


def chat_ids(messages: Sequence[tuple[str, str]], tokenizer: Any) -> list[int]:
    """Return the token ids of messages (role and text) in the tokenizer's chat template, up to where the answer begins.

    Raises ValueError where there is no template, or where it does not take such messages.
    """
    check_chat_template(tokenizer)
    listed = [{"role": role, "content": text} for role, text in messages]
    try:
        text = tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        roles = ", ".join(role for role, _ in messages)
        raise ValueError(
            f"the tokenizer's chat template takes no messages of {roles} ({error}): expected roles that it knows; "
            "change them in the data, or leave out chat-template"
        ) from None
    # The template writes special tokens of its own.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def check_chat_template(tokenizer: Any) -> None:
    """Raise ValueError unless a tokenizer has a chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "chat-template must be false, got true: the backbone's tokenizer has no template; leave it out or choose a "
            "backbone that was tuned for chat"
        )


def _encode(example: Example, tokenizer: Any, way: PromptWay) -> list[int]:
    if way.chat_template:
        return chat_ids((*example.turns, ("user", example.question.removesuffix("\n"))), tokenizer)
    ids: list[int] = tokenizer(example.prompt, verbose=False)["input_ids"]
    return ids


def _shortest_cut(example: Example, room: int, encode: Callable[[Example], list[int]]) -> list[int]:
    """Cut characters off the beginning of the input until it fits, and no more; one at least is left."""
    fitting = None
    low, high = 1, len(example.input) - 1
    while low <= high:
        # From the shortest rest, so that what cannot fit is found at once.
        middle = high if fitting is None else (low + high) // 2
        ids = encode(replace(example, input=example.input[middle:]))
        if len(ids) <= room:
            fitting, high = ids, middle - 1
        elif fitting is None:
            break
        else:
            low = middle + 1
    if fitting is None:
        raise PromptTooLongError(f"a prompt of task {example.task!r} is too long without its input, too: room {room}")
    return fitting
