"""Multiple choice: the answers to choose from, and which one is right."""

import string
from collections.abc import Sequence
from typing import Any

from common.data.bad_row import BadRowError


def choices_of(value: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the choices and their labels, from a list of texts or {"text": [...], "label": [...]}; none from None.

    Raises BadRowError for anything else, and for fewer than two choices.
    """
    if value is None:
        return (), ()
    texts: Any = value.get("text") if isinstance(value, dict) else value
    labels: Any = (value.get("label") or []) if isinstance(value, dict) else []
    right = isinstance(texts, list) and len(texts) > 1 and all(isinstance(text, str) and text for text in texts)
    if not right or not isinstance(labels, list) or len(labels) not in (0, len(texts)):
        said = (
            f"has the choices {value!r:.60}: expected a list of two texts or more, with a label each or none; write it"
        )
        raise BadRowError(where, "no choices", said)
    return tuple(texts), tuple(map(str, labels))


def picked(answer: Any, choices: Sequence[str], labels: Sequence[str], where: str, column: str) -> str:
    """Return the choice that an answer means: a label, an index from 0, a letter or the text itself.

    A label counts first. Raises BadRowError for an answer that means none, or one as text and another as letter.
    """
    if labels and str(answer) in labels:
        return choices[labels.index(str(answer))]
    meant = set()
    if isinstance(answer, int) and not isinstance(answer, bool):
        meant = {choices[answer]} if 0 <= answer < len(choices) else set()
    elif isinstance(answer, str):
        meant = {answer} & set(choices)
        if not labels:
            meant |= {
                choice for letter, choice in zip(string.ascii_uppercase, choices, strict=False) if answer == letter
            }
            meant |= {choice for index, choice in enumerate(choices) if answer == str(index)}
    if len(meant) == 1:
        return meant.pop()
    if meant:
        said = f"has {column!r} {answer!r}, which means {' or '.join(map(repr, sorted(meant)))}: expected one; "
        raise BadRowError(
            where, "an answer of two meanings", said + "write the letter, or the text, that is no other's"
        )
    last = string.ascii_uppercase[min(len(choices), 26) - 1]
    kinds = f"one of {', '.join(labels)}" if labels else f"0 to {len(choices) - 1}, A to {last}"
    said = f"has {column!r} {answer!r:.40}: expected {kinds}, or a choice's text; correct it"
    raise BadRowError(where, "an answer that is no choice", said)


def with_options(text: str, choices: Sequence[str]) -> str:
    """Return an input with the choices below it, a line each, as FLAN writes them."""
    return "\n".join([*([text] if text else []), "OPTIONS:", *(f"- {choice}" for choice in choices)])
