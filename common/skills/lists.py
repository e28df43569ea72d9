"""Skills on a list of three words."""

from random import Random

from common.skills.skill import Skill
from common.skills.words import word


def _items(rng: Random) -> list[str]:
    return [word(rng) for _ in range(3)]


def first(rng: Random) -> tuple[str, str]:
    items = _items(rng)
    return " ".join(items), items[0]


def last(rng: Random) -> tuple[str, str]:
    items = _items(rng)
    return " ".join(items), items[-1]


def initials(rng: Random) -> tuple[str, str]:
    items = _items(rng)
    return " ".join(items), "".join(item[0] for item in items)


SKILLS = (
    Skill(
        "first",
        "lists",
        first,
        ("take the first item", "what comes first", "name the first of them", "give the first one"),
        ("give the first item", "name what comes first"),
    ),
    Skill(
        "last",
        "lists",
        last,
        ("take the last item", "what comes last", "name the last of them", "give the last one"),
        ("give the last item", "name what comes last"),
    ),
    Skill(
        "initials",
        "lists",
        initials,
        ("write the initials", "join the initials", "what are the initials", "make an acronym of the initials"),
        ("join all initials", "give the initials of the items"),
    ),
)
