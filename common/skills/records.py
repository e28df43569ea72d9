"""Skills on small records: look up one field."""

from collections.abc import Callable
from random import Random

from common.skills.skill import Skill

CITIES = tuple("oslo rome lima paris cairo delhi tokyo berlin madrid dublin".split())
JOBS = tuple("cook nurse pilot baker judge clerk smith tailor farmer doctor".split())


def _lookup(field: str) -> Callable[[Random], tuple[str, str]]:
    def make(rng: Random) -> tuple[str, str]:
        record = {"age": str(rng.randint(18, 89)), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
        values = list(record.values())
        rng.shuffle(values)
        return ", ".join(values), record[field]

    return make


SKILLS = (
    Skill(
        "age",
        "records",
        _lookup("age"),
        ("how old is the person", "how old are they", "give the age in years", "tell how old"),
        ("tell how old the person is", "how old is this one"),
    ),
    Skill(
        "city",
        "records",
        _lookup("city"),
        ("where does the person live", "where is their home", "name the place they live in", "where do they live"),
        ("name the place where they live", "where does this person live"),
    ),
)
