"""The whole suite: every skill, its styles, its splits, and examples drawn from them."""

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Literal, get_args

from common.example import Example, Split
from common.skills import dates, lists, numbers, records, sentences, strings
from common.skills.skill import Skill

SKILLS: tuple[Skill, ...] = (
    *strings.SKILLS,
    *numbers.SKILLS,
    *lists.SKILLS,
    *dates.SKILLS,
    *records.SKILLS,
    *sentences.SKILLS,
)

Style = Literal["arrow", "label"]
STYLES: tuple[Style, ...] = get_args(Style)

# An input belongs to one split for ever, by its hash: no seed and no size can make train and test meet.
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.1

# Draws that may fail to give a new input before a task counts as exhausted.
MAX_DRAWS_WITHOUT_NEWS = 2000


def split_of(task: str, text: str) -> Split:
    """Return the split that an input of a task belongs to, by its hash."""
    digest = hashlib.blake2b(f"{task}\n{text}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "validation" if position < TRAIN_SHARE + VALIDATION_SHARE else "test"


def styled(text: str, style: Style) -> str:
    """Write an input in the surface style of a source."""
    return f"{text} ->" if style == "arrow" else f"input: {text}"


def draw(skill: Skill, split: Split, rng: Random) -> tuple[str, str]:
    """Draw an (input, output) pair of a skill whose input belongs to `split`."""
    while True:
        text, answer = skill.make(rng)
        if split_of(skill.name, text) == split:
            return text, answer


def _examples_of(skill: Skill, style: Style, split: Split, count: int, seed: int) -> Iterator[Example]:
    rng = Random(f"{seed}/{skill.name}/{style}/{split}")
    instructions = skill.instructions + (skill.held_out_instructions if split == "test" else ())
    seen: set[str] = set()
    draws_without_news = 0
    while len(seen) < count:
        text, answer = draw(skill, split, rng)
        if text in seen:
            draws_without_news += 1
            if draws_without_news > MAX_DRAWS_WITHOUT_NEWS:
                raise ValueError(
                    f"task {skill.name} has no {count} different {split} inputs: ask for at most {len(seen)} per task"
                )
            continue
        draws_without_news = 0
        seen.add(text)
        yield Example(
            split=split,
            task=skill.name,
            domain=skill.domain,
            source=style,
            instruction=rng.choice(instructions),
            input=styled(text, style),
            output=answer,
        )


def skill_examples(split: Split, count_per_task: int, seed: int) -> list[Example]:
    """Generate a split of the suite: `count_per_task` examples of every task, half of them in each style.

    Inputs differ within a task and style, and no input stands in two splits, whatever the seed. Raises ValueError when
    a task has fewer different inputs than asked for.
    """
    counts = {style: count_per_task // 2 + (count_per_task % 2 if style == STYLES[0] else 0) for style in STYLES}
    return [
        example
        for skill in SKILLS
        for style in STYLES
        for example in _examples_of(skill, style, split, counts[style], seed)
    ]
