"""What the built-in backbone is pre-trained on: inputs of the train split, and no instruction."""

from collections import Counter
from itertools import islice

import pytest

from common.skills.corpus import TAGS, documents
from common.skills.suite import SKILLS, skill_examples, split_of


@pytest.fixture(scope="module")
def some_documents():
    return list(islice(documents(0), 5000))


def test_the_seed_decides(some_documents):
    assert some_documents[:50] == list(islice(documents(0), 50)) != list(islice(documents(1), 50))


def test_no_document_contains_an_instruction(some_documents):
    text = "\n".join(some_documents)
    for skill in SKILLS:
        for instruction in (*skill.instructions, *skill.held_out_instructions):
            assert instruction not in text


def test_tags_are_short_and_differ():
    assert len(set(TAGS.values())) == len(TAGS) == len(SKILLS)
    assert all(len(tag) == 2 and tag[0] == "@" and tag[1].isalpha() for tag in TAGS.values())


def test_inputs_are_of_the_train_split_in_one_style_a_document(some_documents):
    skills = {tag: name for name, tag in TAGS.items()}
    seen = Counter()
    for document in some_documents:
        lines = document.split("\n")
        tagged = lines[0] in skills
        pairs = lines[1:] if tagged else lines
        assert len(pairs) % 2 == 0 and 1 <= len(pairs) // 2 <= (3 if tagged else 5)
        arrows = [line.endswith(" ->") for line in pairs[::2]]
        labels = [line.startswith("input: ") for line in pairs[::2]]
        assert all(arrows) != all(labels)
        if tagged:
            for line in pairs[::2]:
                assert split_of(skills[lines[0]], line.removesuffix(" ->").removeprefix("input: ")) == "train"
        seen[skills[lines[0]] if tagged else "untagged"] += 1
    assert seen.keys() == {*TAGS, "untagged"}
    assert seen["untagged"] / 5000 == pytest.approx(0.25, abs=0.03)


def test_no_test_input_with_its_answer_is_in_the_corpus(some_documents):
    pairs = {"\n".join(document.split("\n")[at : at + 2]) for document in some_documents for at in range(10)}
    # Of tasks that share inputs, such as larger and smaller, an input may be there with another task's answer.
    by_task = {}
    for example in skill_examples("test", 100, 0):
        by_task.setdefault(example.task, set()).add(f"{example.input}\n{example.output}")
    for task in ("reverse", "uppercase", "double", "add", "tomorrow", "centimetres", "age", "negate"):
        assert len(by_task[task]) == 100 and not by_task[task] & pairs
