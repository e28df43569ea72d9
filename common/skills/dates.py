"""Skills on dates and lengths."""

from random import Random

from common.skills.skill import Skill

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _date(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(7), rng.randint(1, 28), rng.randrange(12)


def tomorrow(rng: Random) -> tuple[str, str]:
    weekday, day, month = _date(rng)
    return f"{DAYS[weekday]} {day} {MONTHS[month]}", DAYS[(weekday + 1) % 7]


def numeric_date(rng: Random) -> tuple[str, str]:
    weekday, day, month = _date(rng)
    return f"{DAYS[weekday]} {day} {MONTHS[month]}", f"{day}/{month + 1}"


def _length(rng: Random) -> tuple[int, int]:
    return rng.randint(1, 99), rng.randint(0, 99)


def centimetres(rng: Random) -> tuple[str, str]:
    metres, rest = _length(rng)
    return f"{metres} m {rest} cm", f"{metres}{rest:02d}"


def metres(rng: Random) -> tuple[str, str]:
    metres, rest = _length(rng)
    return f"{metres} m {rest} cm", f"{metres}.{rest:02d}"


SKILLS = (
    Skill(
        "tomorrow",
        "dates and units",
        tomorrow,
        ("which day comes after", "name the day after", "what day is it a day later", "one day later it is"),
        ("name the day one day later", "which day is the day after"),
    ),
    Skill(
        "numeric-date",
        "dates and units",
        numeric_date,
        ("write the date in numbers", "turn the date into digits", "use numbers for the date", "date in digits"),
        ("write this date in digits", "give the date in numbers"),
    ),
    Skill(
        "centimetres",
        "dates and units",
        centimetres,
        ("convert to centimetres", "how many centimetres", "write it in centimetres", "length in centimetres"),
        ("how many centimetres is it", "give the length in centimetres"),
    ),
    Skill(
        "metres",
        "dates and units",
        metres,
        ("convert to metres", "how many metres", "write it in metres", "length in metres"),
        ("how many metres is it", "give the length in metres"),
    ),
)
