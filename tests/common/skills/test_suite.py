"""The built-in skills: right answers, and splits that never meet."""

from collections import Counter
from random import Random

import pytest

from common.skills import suite
from common.skills.suite import SKILLS, STYLES, draw, skill_examples, split_of, styled
from common.skills.words import BAD, GOOD, NOUNS, PLAIN

BY_NAME = {skill.name: skill for skill in SKILLS}
WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun", "mon"]
YEAR = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
CITIES = {"oslo", "rome", "lima", "paris", "cairo", "delhi", "tokyo", "berlin", "madrid", "dublin"}
PLEASANT = {"happy", "kind", "bright", "clean", "calm", "brave", "lovely", "fresh", "sweet", "strong", "gentle", "warm"}
ODD_PLURALS = {"leaf": "leaves", "wolf": "wolves", "fish": "fish", "fox": "foxes", "glass": "glasses"}


def in_centimetres(text):
    metres, m, centimetres, cm = text.split()
    assert (m, cm) == ("m", "cm") and 0 <= int(centimetres) < 100
    return int(metres) * 100 + int(centimetres)


# What the answer to an input must be, said in another way than the skill says it.
ANSWERS = {
    "reverse": lambda text: "".join(reversed(text)),
    "uppercase": lambda text: "".join(chr(ord(letter) - 32) for letter in text),
    "vowels": lambda text: text.translate(str.maketrans("", "", "bcdfghjklmnpqrstvwxyz")),
    "double": lambda text: "".join(letter for letter in text for _ in "12"),
    "larger": lambda text: str(sorted(map(int, text.split()))[1]),
    "smaller": lambda text: str(sorted(map(int, text.split()))[0]),
    "add": lambda text: str(sum(map(int, text.split()))),
    "first": lambda text: text.partition(" ")[0],
    "last": lambda text: text.rpartition(" ")[2],
    "initials": lambda text: "".join(text[i] for i in range(len(text)) if i == 0 or text[i - 1] == " "),
    "tomorrow": lambda text: WEEK[WEEK.index(text[:3]) + 1],
    "numeric-date": lambda text: f"{int(text[4:-4])}/{YEAR.index(text[-3:]) + 1}",
    "centimetres": lambda text: str(in_centimetres(text)),
    "metres": lambda text: f"{in_centimetres(text) / 100:.2f}",
    "age": lambda text: next(part for part in text.split(", ") if part.isdigit()),
    "city": lambda text: next(part for part in text.split(", ") if part in CITIES),
    "negate": lambda text: "not" + text.partition(" is")[2],
    "plural": lambda text: f"{text.split()[1]} {ODD_PLURALS.get(text.split()[2], text.split()[2] + 's')}",
    "sentiment": lambda text: "good" if text.split()[4] in PLEASANT else "bad",
    "question": lambda text: text.split()[2],
}

# Written by hand, so that the rules above are themselves held to something.
KNOWN = {
    "reverse": ("river", "revir"),
    "uppercase": ("river", "RIVER"),
    "vowels": ("ocean", "oea"),
    "double": ("cat", "ccaatt"),
    "larger": ("9 10", "10"),
    "smaller": ("9 10", "9"),
    "add": ("95 7", "102"),
    "first": ("cat dog fox", "cat"),
    "last": ("cat dog fox", "fox"),
    "initials": ("cat dog fox", "cdf"),
    "tomorrow": ("sun 3 may", "mon"),
    "numeric-date": ("sun 13 may", "13/5"),
    "centimetres": ("7 m 5 cm", "705"),
    "metres": ("7 m 5 cm", "7.05"),
    "age": ("cook, 31, oslo", "31"),
    "city": ("cook, 31, oslo", "oslo"),
    "negate": ("the old dog is sad", "not sad"),
    "plural": ("the old wolf is sad", "old wolves"),
    "sentiment": ("the old dog is sad", "bad"),
    "question": ("the old dog is sad", "dog"),
}


def test_there_are_many_skills_of_many_domains():
    assert len(SKILLS) >= 16 and len(BY_NAME) == len(SKILLS)
    assert len({skill.domain for skill in SKILLS}) >= 5


def test_the_rules_of_this_test_hold_on_known_answers():
    assert {name: (text, ANSWERS[name](text)) for name, (text, _) in KNOWN.items()} == KNOWN


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_answers_are_right(skill):
    rng = Random(0)
    for _ in range(2000):
        text, answer = skill.make(rng)
        assert answer and answer == ANSWERS[skill.name](text), text


def test_every_word_is_unambiguous():
    assert len(set(NOUNS)) == len(NOUNS) and all(noun.isalpha() and noun.islower() for noun in NOUNS)
    assert not set(GOOD) & set(BAD) and set(GOOD) == PLEASANT
    assert not set(PLAIN) & set(GOOD + BAD)


def test_numbers_to_compare_differ():
    rng = Random(0)
    assert all(len(set(BY_NAME["larger"].make(rng)[0].split())) == 2 for _ in range(1000))


# --- Splits ---


@pytest.fixture(scope="module")
def several_seeds():
    return {
        split: [example for seed in (0, 1, 2) for example in skill_examples(split, 60, seed)]
        for split in ("train", "validation", "test")
    }


def test_no_input_stands_in_two_splits_whatever_the_seed(several_seeds):
    inputs = {
        split: {(e.task, e.input.removesuffix(" ->").removeprefix("input: ")) for e in examples}
        for split, examples in several_seeds.items()
    }
    assert len(inputs["train"]) > len(SKILLS) * 100
    assert not inputs["train"] & inputs["test"]
    assert not inputs["train"] & inputs["validation"]
    assert not inputs["validation"] & inputs["test"]
    assert all(split_of(task, text) == split for split in inputs for task, text in inputs[split])


def test_held_out_instructions_stand_in_the_test_split_alone(several_seeds):
    for skill in SKILLS:
        used = {
            split: {example.instruction for example in examples if example.task == skill.name}
            for split, examples in several_seeds.items()
        }
        assert used["train"] == used["validation"] == set(skill.instructions)
        assert used["test"] == {*skill.instructions, *skill.held_out_instructions}


def test_every_instruction_asks_for_one_skill():
    instructions = [text for skill in SKILLS for text in (*skill.instructions, *skill.held_out_instructions)]
    assert [text for text, count in Counter(instructions).items() if count > 1] == []


def test_the_shares_of_the_splits_are_70_10_20():
    rng = Random(0)
    splits = Counter(split_of("reverse", str(rng.random())) for _ in range(10_000))
    shares = [splits[split] / 10_000 for split in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)  # 4 sigma


def test_drawn_inputs_belong_to_their_split():
    rng = Random(0)
    for split in ("train", "validation", "test"):
        assert all(split_of("add", draw(BY_NAME["add"], split, rng)[0]) == split for _ in range(50))


# --- Examples ---


def test_examples_are_as_many_as_asked_half_in_each_style():
    examples = skill_examples("train", 5, 0)
    assert Counter((e.task, e.source) for e in examples) == {
        (skill.name, style): count for skill in SKILLS for style, count in zip(STYLES, (3, 2), strict=True)
    }
    for example in examples:
        assert (example.split, example.domain) == ("train", BY_NAME[example.task].domain)
        text = example.input.removesuffix(" ->") if example.source == "arrow" else example.input.removeprefix("input: ")
        assert text != example.input and example.output == ANSWERS[example.task](text)


def test_styles_look_like_this():
    assert [styled("a b", style) for style in STYLES] == ["a b ->", "input: a b"]


def test_inputs_differ_within_a_task_and_style():
    examples = skill_examples("train", 100, 0)
    assert len({(e.task, e.source, e.input) for e in examples}) == len(examples)


def test_the_seed_decides():
    assert skill_examples("train", 10, 0) == skill_examples("train", 10, 0) != skill_examples("train", 10, 1)


def test_the_default_number_of_examples_is_there():
    assert len(skill_examples("train", 400, 0)) == 400 * len(SKILLS)


def test_more_inputs_than_a_task_has_are_an_error(monkeypatch):
    monkeypatch.setattr(suite, "SKILLS", (BY_NAME["larger"],))  # 9900 pairs, a tenth of them for validation
    with pytest.raises(
        ValueError, match=r"task larger has no 1100 different validation inputs: ask for at most \d+ per"
    ):
        skill_examples("validation", 2200, 0)
