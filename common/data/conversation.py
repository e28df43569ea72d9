"""Chat messages: the last one, of the assistant, is the answer; what stands before it is the prompt."""

from typing import Any

from common.data.bad_row import BadRowError

ROLES = ("system", "user", "assistant")
Turns = tuple[tuple[str, str], ...]


def conversation(messages: Any, where: str) -> tuple[Turns, str, str]:
    """Return the earlier turns (role, text), the user's last one, and the answer to it.

    `messages` is a list of {"role", "content"}. Raises BadRowError unless it ends with the user and the assistant.
    """
    if not isinstance(messages, list):
        said = f"has 'messages' {messages!r:.40}: expected a list of {{'role', 'content'}}; write one"
        raise BadRowError(where, "no list of messages", said)
    turns = tuple(_turn(message, number, where) for number, message in enumerate(messages, start=1))
    roles = [role for role, _ in turns]
    if roles[-2:] != ["user", "assistant"]:
        raise BadRowError(
            where,
            "no answer at the end",
            f"has messages of {', '.join(roles) or 'nobody'}: expected user and assistant at the end; "
            "leave out what comes after the last answer",
        )
    return turns[:-2], turns[-2][1], turns[-1][1]


def _turn(message: Any, number: int, where: str) -> tuple[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ROLES:
        said = f"has message {number} of the role {role!r:.40}: expected {', '.join(ROLES)}; rename it"
        raise BadRowError(where, "a message of an unknown role", said)
    if not isinstance(content, str) or not content:
        said = f"has message {number} without text in 'content': expected a text; write one, without images"
        raise BadRowError(where, "a message without text", said)
    return role, content
