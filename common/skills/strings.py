"""Skills on the letters of a word."""

from random import Random

from common.skills.skill import Skill
from common.skills.words import word


def reverse(rng: Random) -> tuple[str, str]:
    text = word(rng)
    return text, text[::-1]


def uppercase(rng: Random) -> tuple[str, str]:
    text = word(rng)
    return text, text.upper()


def vowels(rng: Random) -> tuple[str, str]:
    text = word(rng)
    return text, "".join(letter for letter in text if letter in "aeiou")


def double(rng: Random) -> tuple[str, str]:
    text = word(rng)
    return text, "".join(letter * 2 for letter in text)


SKILLS = (
    Skill(
        "reverse",
        "strings",
        reverse,
        ("spell the word backwards", "reverse the letters", "write it backwards", "reverse this word"),
        ("reverse the word", "spell this backwards"),
    ),
    Skill(
        "uppercase",
        "strings",
        uppercase,
        ("write it in capitals", "make the letters capital", "turn it into capitals", "use capital letters"),
        ("write the word in capital letters", "make it capitals"),
    ),
    Skill(
        "vowels",
        "strings",
        vowels,
        ("keep only the vowels", "list the vowels", "drop all but the vowels", "which vowels are in it"),
        ("keep the vowels", "list all vowels of the word"),
    ),
    Skill(
        "double",
        "strings",
        double,
        ("double each letter", "write every letter twice", "repeat every letter", "say each letter twice"),
        ("double every letter", "write each letter twice"),
    ),
)
