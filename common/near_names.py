"""What to say of a name that does not exist."""

from collections.abc import Sequence
from difflib import get_close_matches


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """Ask for the known names that come near, or say what is expected otherwise."""
    near = get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
