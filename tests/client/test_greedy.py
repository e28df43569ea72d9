"""Greedy answers against generate of transformers and against the plainest loop, for every kind of model."""

import copy
from dataclasses import replace

import pytest
import torch
from adapters import adapted_by, methods, with_shifted_values
from peft_tiny import KINDS, generated, kinds, loaded, peft_warns, prompts_of
from tiny import CPU, byte_tokenizer, examples, mixture_for, tiny_backbone, tiny_llama, tokenized

import common.peft_mixture  # noqa: F401  makes peft know the method
from client import greedy
from client.greedy import greedy_answers
from common.batches import collate
from common.injection import PromptedBackbone

LONGEST = 128
NUM_TOKENS = 8


def text_of(token_ids):
    return byte_tokenizer().decode(token_ids, skip_special_tokens=True)


def one_by_one(model, some, num_tokens=NUM_TOKENS):
    """Return each example's likeliest tokens, one example at a time."""
    found = []
    for text in tokenized(some):
        answer: list[int] = []
        while len(answer) < num_tokens:
            with torch.no_grad():
                logits, _ = model.logits(collate([replace(text, answer_ids=answer)], 2, CPU))
            answer = [*answer, int(logits[0, -1].argmax())]
            if answer[-1] == 1:
                break
        found.append(answer)
    return found


def test_the_backbone_answers_as_transformers_generates():
    some = tokenized(examples(9))
    answers = greedy_answers(tiny_backbone(), some, NUM_TOKENS, LONGEST)
    assert len(set(answers)) > 3
    for text, answer in zip(some, answers, strict=True):
        inputs = {"input_ids": torch.tensor([text.prompt_ids])}
        (row,) = tiny_llama().generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)[:, len(text.prompt_ids) :]
        assert answer == text_of(row.tolist())


@peft_warns
@kinds
def test_a_mixture_answers_as_its_peft_adapter_generates(tmp_path, kind):
    adapter, mixture = loaded(tmp_path / kind, kind)
    _, tasks, singles = prompts_of(6)
    answers = greedy_answers(PromptedBackbone(tiny_backbone(), mixture), tokenized(examples(6)), NUM_TOKENS, LONGEST)
    assert answers != greedy_answers(tiny_backbone(), tokenized(examples(6)), NUM_TOKENS, LONGEST)
    for answer, task, prompt in zip(answers, tasks, singles, strict=True):
        (row,) = generated(adapter, {"input_ids": prompt}, NUM_TOKENS, tasks=[task], min_new_tokens=1)
        assert answer == text_of(row.tolist())
    assert kind in KINDS


@methods
def test_a_baseline_answers_as_a_loop_over_single_examples(method):
    some = examples(6)
    with with_shifted_values(adapted_by(method)) as adapted:
        expected = one_by_one(adapted, some)
        answers = greedy_answers(adapted, tokenized(some), NUM_TOKENS, LONGEST)
    assert answers == [text_of(row) for row in expected]
    assert answers != greedy_answers(tiny_backbone(), tokenized(some), NUM_TOKENS, LONGEST)


def test_the_true_answers_are_not_looked_at():
    prompted = PromptedBackbone(tiny_backbone(), mixture_for(tiny_backbone()))
    some = examples(5)
    others = [replace(example, output="another") for example in some]
    assert tokenized(some) != tokenized(others)
    first, second = (greedy_answers(prompted, tokenized(each), NUM_TOKENS, LONGEST) for each in (some, others))
    assert first == second


def test_batches_and_order_change_nothing(monkeypatch):
    some = tokenized(examples(9))
    expected = greedy_answers(tiny_backbone(), some, NUM_TOKENS, LONGEST)
    monkeypatch.setattr(greedy, "BATCH_SIZE", 2)
    assert greedy_answers(tiny_backbone(), some, NUM_TOKENS, LONGEST) == expected
    assert greedy_answers(tiny_backbone(), some[::-1], NUM_TOKENS, LONGEST) == expected[::-1]
    assert [text.answer_ids for text in some] == [text.answer_ids for text in tokenized(examples(9))]


def test_an_answer_ends_before_the_end_of_text():
    (text,) = tokenized(examples(1))
    inputs = {"input_ids": torch.tensor([text.prompt_ids])}
    row = (
        tiny_llama().generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)[0, len(text.prompt_ids) :].tolist()
    )
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(row[3])
    backbone = replace(tiny_backbone(), tokenizer=tokenizer)
    (answer,) = greedy_answers(backbone, [text], NUM_TOKENS, LONGEST)
    assert answer == text_of(row[: row.index(row[3])])


@pytest.mark.parametrize(("most", "room", "left"), [(5, 99, 5), (5, 2, 2), (1, 2, 1), (3, 0, 0)])
def test_an_answer_is_no_longer_than_wanted_and_than_what_fits(most, room, left):
    some = tokenized(examples(1))
    backbone = tiny_backbone()
    longest = len(some[0].prompt_ids) + room
    tokens = one_by_one(PromptedBackbone(backbone, mixture_for(backbone)), examples(1), left) if left else [[]]
    prompted = PromptedBackbone(tiny_backbone(), mixture_for(tiny_backbone()))
    assert greedy_answers(prompted, some, most, longest) == [text_of(tokens[0])]


def test_an_answer_ends_before_the_first_stop():
    some = tokenized(examples(1))
    (whole,) = greedy_answers(tiny_backbone(), some, NUM_TOKENS, LONGEST)
    stops = ["never there", whole[5], whole[3]]
    (answer,) = greedy_answers(tiny_backbone(), some, NUM_TOKENS, LONGEST, stops)
    assert answer == whole[: min(whole.index(stop) for stop in stops[1:])]
