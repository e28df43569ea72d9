"""Measures against known answers and slow, obvious references."""

import logging
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters import adapted_by, methods, with_shifted_values
from tiny import CPU, examples, mixture_for, tiny_backbone, tiny_llama, tokenized

from client import measurer as module
from client.greedy import greedy_answers
from client.measurer import likeliest, measure, text_measure
from common import measures as names
from common.batches import collate
from common.injection import PromptedBackbone
from common.measures import MEASURES, MeasureSum

LONGEST = 128
CHOICES = ("yes", "no", "perhaps so")
pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'fedmops[measures]'")


def with_choices(count=7, seed=0):
    """Return examples of three tasks, two of them with choices, of which a random one is right."""
    rng = random.Random(seed)
    return [
        example if example.task == "shout" else replace(example, choices=CHOICES, output=rng.choice(CHOICES))
        for example in examples(count)
    ]


def measured(model, some, names, examples_per_task=99, max_new_tokens=6, longest=LONGEST):
    return measure(model, some, tokenized(some), names, examples_per_task, max_new_tokens, longest)


# --- Exact match and ROUGE-L ---


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("yes", "yes", 1.0),
        (" yes\n", "yes", 1.0),
        ("yes", "\tyes ", 1.0),
        ("Yes", "yes", 0.0),
        ("yes.", "yes", 0.0),
        ("a  b", "a b", 0.0),
        ("", "yes", 0.0),
    ],
)
def test_exact_match(answer, reference, value):
    assert text_measure("exact-match")(answer, reference) == value


def rouge_l_by_hand(answer, reference):
    """F1 of the longest common subsequence, by trying out every subsequence of the reference's words."""
    a, b = (re.findall("[a-z0-9]+", text.lower()) for text in (answer, reference))
    best = 0
    for chosen in range(2 ** len(b)):
        some = [word for place, word in enumerate(b) if chosen >> place & 1]
        rest = iter(a)
        if all(word in rest for word in some):
            best = max(best, len(some))
    return 2 * best / (len(a) + len(b)) if best else 0.0


def test_rouge_l_equals_a_search_over_all_subsequences():
    rng = random.Random(0)
    compare = text_measure("rouge-l")
    values = set()
    for _ in range(200):
        texts = [" ".join(rng.choices(["a", "The", "cat", "sat;", "9"], k=rng.randint(0, 7))) for _ in range(2)]
        assert compare(*texts) == pytest.approx(rouge_l_by_hand(*texts), abs=1e-12)
        values.add(round(compare(*texts), 3))
    assert len(values) > 10


def test_rouge_l_of_known_texts():
    compare = text_measure("rouge-l")
    # Lin 2004, section 3.1: of "police killed the gunman", the first shares three words in order, the second two.
    assert compare("police kill the gunman", "police killed the gunman") == 0.75
    assert compare("the gunman kill police", "police killed the gunman") == 0.5
    assert compare("Police killed the GUNMAN!", "police killed the gunman") == 1.0
    assert compare("", "police") == compare("!", "!") == 0.0


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"rouge-l needs the package rouge-score: pip install 'fedmops\[measures\]'"):
        text_measure("rouge-l")


def test_logging_stays_as_it_is():
    """rouge-score would have the root logger print whatever is logged."""
    code = "import logging, client.measurer as m; m.text_measure('rouge-l')('a', 'b'); print(logging.root.handlers)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_texts_are_those_that_are_generated():
    some = examples(7)
    answers = greedy_answers(tiny_backbone(), tokenized(some), 6, LONGEST)
    # Let some answers be right.
    some = [replace(some[n], output=answers[n]) if n in (0, 3, 4) else some[n] for n in range(7)]
    found = measured(tiny_backbone(), some, ["exact-match", "rouge-l"])
    assert list(found) == ["count", "shout", "turn"]
    for task, expected in {"shout": (2.0, 3), "turn": (1.0, 2), "count": (0.0, 2)}.items():
        assert found[task]["exact-match"] == MeasureSum(*expected)
        rouge = sum(rouge_l_by_hand(answers[n], some[n].output) for n in range(7) if some[n].task == task)
        assert found[task]["rouge-l"] == MeasureSum(pytest.approx(rouge), expected[1])


# --- Multiple choice ---


def slow_accuracy(some, logits_of, normalised):
    """Return by task how many choices are right: one text at a time, one token at a time."""
    right: dict[str, list[int]] = {}
    for example in some:
        if not example.choices:
            continue
        values = []
        for choice in example.choices:
            (text,) = tokenized([replace(example, output=choice)])
            log_p = torch.log_softmax(logits_of(text), dim=-1)
            start = len(log_p) - len(text.answer_ids) - 1
            value = sum(float(log_p[start + n, token]) for n, token in enumerate(text.answer_ids))
            values.append(value / len(choice) if normalised else value)
        best = max(values)
        assert sorted(values)[-2] < best - 1e-3  # no tie that float32 could turn
        right.setdefault(example.task, []).append(example.choices[values.index(best)] == example.output)
    return {task: (float(sum(each)), len(each)) for task, each in sorted(right.items())}


def backbone_in_float64(text):
    model = tiny_llama().double()
    with torch.no_grad():
        return model(input_ids=torch.tensor([text.prompt_ids + text.answer_ids])).logits[0]


def tuned_alone(tuned):
    def logits_of(text):
        with torch.no_grad():
            return tuned.logits(collate([text], 2, CPU))[0][0].double()

    return logits_of


@pytest.mark.parametrize(("name", "normalised"), [("choice-accuracy", False), ("choice-accuracy-normalised", True)])
def test_accuracy_of_the_backbone_equals_a_loop_in_float64(name, normalised):
    some = with_choices(22)
    found = measured(tiny_backbone(), some, [name])
    expected = slow_accuracy(some, backbone_in_float64, normalised)
    assert found == {task: {name: MeasureSum(*each)} for task, each in expected.items()}
    assert list(found) == ["count", "turn"]  # the other task has no choices, and no value
    assert 0 < sum(each[0] for each in expected.values()) < sum(each[1] for each in expected.values())


def test_the_two_accuracies_are_not_the_same():
    some = with_choices(22)
    found = measured(tiny_backbone(), some, ["choice-accuracy", "choice-accuracy-normalised"])
    assert {each["choice-accuracy"] == each["choice-accuracy-normalised"] for each in found.values()} != {True}


@pytest.mark.parametrize("changes", [{}, {"gate": "both", "tasks": ("count", "turn")}, {"positions": "answer"}])
def test_accuracy_of_a_mixture_equals_a_loop(changes):
    some = with_choices(13)
    prompted = PromptedBackbone(tiny_backbone(), mixture_for(tiny_backbone(), **changes))
    found = measured(prompted, some, ["choice-accuracy"])
    expected = slow_accuracy(some, tuned_alone(prompted), False)
    assert found == {task: {"choice-accuracy": MeasureSum(*each)} for task, each in expected.items()}


@methods
def test_accuracy_of_a_baseline_equals_a_loop(method):
    some = with_choices(7)
    with with_shifted_values(adapted_by(method)) as adapted:
        found = measured(adapted, some, ["choice-accuracy"])
        expected = slow_accuracy(some, tuned_alone(adapted), False)
    assert found == {task: {"choice-accuracy": MeasureSum(*each)} for task, each in expected.items()}


def test_the_likeliest_choice():
    assert likeliest("choice-accuracy", ["a", "bbbb"], [-1.0, -2.0]) == "a"
    assert likeliest("choice-accuracy-normalised", ["a", "bbbb"], [-1.0, -2.0]) == "bbbb"
    assert likeliest("choice-accuracy", ["a", "b", "c"], [-2.0, -1.0, -1.0]) == "b"  # the first of equal ones


def test_a_prompt_that_leaves_no_room_is_cut_alike_for_all_choices():
    (example,) = with_choices(2)[1:]
    (text,) = tokenized([example])
    longest = len(text.prompt_ids) + 5  # "no" would fit, "perhaps so" does not
    ((_, texts),) = module._answered_by_each_choice([example], [text], tiny_backbone(), longest)
    assert [each.prompt_ids for each in texts] == [text.prompt_ids[-(longest - 11) :]] * 3
    assert max(each.num_tokens for each in texts) == longest
    assert [len(each.special) for each in texts] == [len(each.prompt_ids) for each in texts]


def test_an_example_whose_choice_does_not_fit_is_left_out_and_told(caplog):
    caplog.set_level(logging.INFO, "flwr.fedmops")
    some = [replace(example, choices=()) for example in with_choices(3)]
    some[1] = replace(some[1], choices=("no", "x" * 200), output="no")
    assert measured(tiny_backbone(), some, ["choice-accuracy"]) == {}
    assert "1 of 3 examples have no choice accuracy: a choice does not fit into 128 tokens" in caplog.text


# --- All together ---


def test_true_answers_that_are_longer_than_what_is_generated_are_told(caplog):
    some = [replace(examples(1)[0], output=output) for output in ("12345", "123456", "1234567")]
    measured(tiny_backbone(), some, ["exact-match"], max_new_tokens=5)
    assert "2 of 3 true answers are longer than max-answer-tokens, 5: none of theirs can be right" in caplog.text


def test_at_most_so_many_examples_of_each_task_are_measured():
    some = with_choices(13)
    found = measured(tiny_backbone(), some, MEASURES, examples_per_task=2)
    assert {(name, each.count) for measures in found.values() for name, each in measures.items()} == {
        (name, 2) for name in MEASURES
    }
    first = [some[n] for n in range(6)]
    assert found == measured(tiny_backbone(), first, MEASURES)


def test_the_cost_is_told(caplog):
    caplog.set_level(logging.INFO, "flwr.fedmops")
    measured(tiny_backbone(), with_choices(4), ["exact-match", "choice-accuracy"])
    assert re.search(r"exact-match, choice-accuracy of 4 answers took \d+\.\d s", caplog.text)
