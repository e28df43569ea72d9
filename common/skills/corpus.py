"""Documents to pre-train the built-in backbone on: the skills by tag or by several examples, never by instruction."""

from collections.abc import Iterator
from random import Random

from common.skills.suite import SKILLS, STYLES, draw, styled

TAGS = {skill.name: f"@{chr(ord('a') + index)}" for index, skill in enumerate(SKILLS)}
TAGGED_SHARE = 0.75
MAX_TAGGED_EXAMPLES, MAX_UNTAGGED_EXAMPLES = 3, 5


def documents(seed: int) -> Iterator[str]:
    """Yield documents without end: one skill each, in one style, after its tag or as several examples in a row.

    Inputs come from the train split alone, so that no test input of the suite was ever pre-trained on.
    """
    rng = Random(f"corpus/{seed}")
    while True:
        skill, style = rng.choice(SKILLS), rng.choice(STYLES)
        tagged = rng.random() < TAGGED_SHARE
        count = rng.randint(1, MAX_TAGGED_EXAMPLES if tagged else MAX_UNTAGGED_EXAMPLES)
        pairs = [draw(skill, "train", rng) for _ in range(count)]
        lines = [f"{styled(text, style)}\n{answer}" for text, answer in pairs]
        yield "\n".join([TAGS[skill.name], *lines] if tagged else lines)
