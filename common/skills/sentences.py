"""Skills on short English sentences."""

from random import Random

from common.skills.skill import Skill
from common.skills.words import BAD, GOOD, NOUNS, PLAIN


def _sentence(rng: Random) -> tuple[str, str, str]:
    """Draw the parts of "the old dog is happy": an adjective, a noun, a judgement."""
    return rng.choice(PLAIN), rng.choice(NOUNS), rng.choice(GOOD + BAD)


def _plural(noun: str) -> str:
    if noun == "leaf":
        return "leaves"
    if noun == "wolf":
        return "wolves"
    if noun.endswith(("s", "x", "sh")) and noun != "fish":
        return noun + "es"
    return noun if noun == "fish" else noun + "s"


def negate(rng: Random) -> tuple[str, str]:
    plain, noun, judgement = _sentence(rng)
    return f"the {plain} {noun} is {judgement}", f"not {judgement}"


def plural(rng: Random) -> tuple[str, str]:
    plain, noun, judgement = _sentence(rng)
    return f"the {plain} {noun} is {judgement}", f"{plain} {_plural(noun)}"


def sentiment(rng: Random) -> tuple[str, str]:
    plain, noun, judgement = _sentence(rng)
    return f"the {plain} {noun} is {judgement}", "good" if judgement in GOOD else "bad"


def question(rng: Random) -> tuple[str, str]:
    plain, noun, judgement = _sentence(rng)
    return f"the {plain} {noun} is {judgement}", noun


SKILLS = (
    Skill(
        "negate",
        "sentences",
        negate,
        ("negate the opinion", "say the opposite with not", "put a not before it", "deny it with not"),
        ("deny the opinion with not", "negate it"),
    ),
    Skill(
        "plural",
        "sentences",
        plural,
        ("make the noun plural", "write the plural", "say it of many", "turn it into the plural"),
        ("put the noun into the plural", "say this of many"),
    ),
    Skill(
        "sentiment",
        "sentences",
        sentiment,
        ("is the opinion good or bad", "good or bad", "judge it good or bad", "what is the opinion"),
        ("is this opinion good or bad", "judge the opinion"),
    ),
    Skill(
        "question",
        "sentences",
        question,
        ("what is the sentence about", "who or what is it", "what does the sentence speak of", "what is it about"),
        ("who or what is the sentence about", "what does it speak of"),
    ),
)
