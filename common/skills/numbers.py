"""Skills on two numbers."""

from random import Random

from common.skills.skill import Skill


def _pair(rng: Random) -> tuple[int, int]:
    first = rng.randint(0, 99)
    second = rng.choice([number for number in range(100) if number != first])
    return first, second


def larger(rng: Random) -> tuple[str, str]:
    first, second = _pair(rng)
    return f"{first} {second}", str(max(first, second))


def smaller(rng: Random) -> tuple[str, str]:
    first, second = _pair(rng)
    return f"{first} {second}", str(min(first, second))


def add(rng: Random) -> tuple[str, str]:
    first, second = _pair(rng)
    return f"{first} {second}", str(first + second)


SKILLS = (
    Skill(
        "larger",
        "numbers",
        larger,
        ("which number is larger", "give the larger one", "pick the larger number", "which of the two is larger"),
        ("which one is larger", "give the larger number"),
    ),
    Skill(
        "smaller",
        "numbers",
        smaller,
        ("which number is smaller", "give the smaller one", "pick the smaller number", "which of the two is smaller"),
        ("which one is smaller", "give the smaller number"),
    ),
    Skill(
        "add",
        "numbers",
        add,
        ("add the numbers", "what is the sum", "add them up", "give the sum of both"),
        ("what is their sum", "add both numbers"),
    ),
)
