"""Prompts as tokens: what is cut of one that is too long, and prompts in a chat template."""

from copy import deepcopy

import pytest
from tiny import byte_tokenizer

from common.batches import AnswerTooLongError, tokenize
from common.example import Example
from common.prompt_tokens import PromptTooLongError, PromptWay, chat_ids

BOS, EOS = 0, 2
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</>"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_tokenizer():
    tokenizer = deepcopy(byte_tokenizer())  # the other one is everybody's
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def example(instruction="Double it.", text="0123456789", output="ok", turns=()):
    return Example("train", "task", "domain", "", instruction, text, output, turns=turns)


def prompt_of(tokens, tokenizer=None):
    return (tokenizer or byte_tokenizer()).decode(tokens.prompt_ids)


def cut(example, size, way, tokenizer=None):
    return tokenize(example, tokenizer or byte_tokenizer(), size, way)


CUT_START, CUT_INPUT, LEAVE_OUT = (PromptWay(way) for way in ("cut-start", "cut-input", "leave-out"))
WHOLE = 1 + len("Double it.\n0123456789\n") + len("ok") + 1  # <s>, the bytes, the end of the text


@pytest.mark.parametrize("way", [CUT_START, CUT_INPUT, LEAVE_OUT])
def test_a_prompt_that_fits_is_the_same_in_every_way(way):
    tokens = cut(example(), WHOLE, way)
    assert prompt_of(tokens) == "<s>Double it.\n0123456789\n"
    assert not tokens.prompt_cut


def test_cut_start_loses_the_beginning():
    tokens = cut(example(), WHOLE - 4, CUT_START)
    assert prompt_of(tokens) == "ble it.\n0123456789\n"
    assert tokens.prompt_cut
    assert tokens == cut(example(), WHOLE - 4, PromptWay())  # the default


@pytest.mark.parametrize("lost", range(1, 10))
def test_cut_input_keeps_the_instruction_and_the_inputs_end(lost):
    tokens = cut(example(), WHOLE - lost, CUT_INPUT)
    assert prompt_of(tokens) == f"<s>Double it.\n{'0123456789'[lost:]}\n"
    assert tokens.prompt_cut
    assert tokens.num_tokens == WHOLE - lost
    assert tokens.special == [True] + [False] * (len(tokens.prompt_ids) - 1)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (example(), WHOLE - 10),  # a character of the input is left at least
        (example(text=""), WHOLE - 12),
        (example(text="x"), WHOLE - 10),
        (example(instruction="long " * 9), 30),
    ],
)
def test_cut_input_gives_up_where_the_instruction_does_not_fit(given, size):
    with pytest.raises(PromptTooLongError):
        cut(given, size, CUT_INPUT)


def test_leave_out_cuts_nothing():
    with pytest.raises(PromptTooLongError, match="a prompt of task 'task' has 23 tokens, but there is room for 22"):
        cut(example(), WHOLE - 1, LEAVE_OUT)


@pytest.mark.parametrize("way", [CUT_START, CUT_INPUT, LEAVE_OUT])
def test_an_answer_is_never_cut(way):
    with pytest.raises(AnswerTooLongError):
        cut(example(output="o" * 50), 40, way)


# --- Chat templates ---


def test_a_prompt_stands_in_the_template_as_the_users_turn():
    tokens = cut(example(), 200, PromptWay(chat_template=True), chat_tokenizer())
    assert prompt_of(tokens) == "<s><user>Double it.\n0123456789</><assistant>"
    assert tokens.prompt_ids.count(BOS) == 1  # the template writes it
    assert tokens.special[0] and not any(tokens.special[1:])
    assert tokens.answer_ids == tokenize(example(), byte_tokenizer(), 200).answer_ids


def test_earlier_turns_stand_in_the_template_with_their_roles():
    turns = (("system", "be kind"), ("user", "hi"), ("assistant", "hello"))
    tokens = cut(example(text="", turns=turns), 200, PromptWay(chat_template=True), chat_tokenizer())
    assert prompt_of(tokens) == "<s><system>be kind</><user>hi</><assistant>hello</><user>Double it.</><assistant>"


def test_earlier_turns_are_lines_without_a_template():
    turns = (("system", "be kind"), ("user", "hi"), ("assistant", "hello"))
    assert example(turns=turns).prompt == "system: be kind\nuser: hi\nassistant: hello\nuser: Double it.\n0123456789\n"
    assert example().prompt == "Double it.\n0123456789\n"


@pytest.mark.parametrize(
    ("too_long", "left"), [("cut-start", "it.\n0123456789"), ("cut-input", "Double it.\n789")], ids=["start", "input"]
)
def test_what_is_cut_is_the_question_and_never_the_template(too_long, left):
    way = PromptWay(too_long, chat_template=True)
    size = len(f"<user>{left}</><assistant>") + 1 + 3
    tokens = cut(example(), size, way, chat_tokenizer())
    assert prompt_of(tokens) == f"<s><user>{left}</><assistant>"
    assert tokens.prompt_cut and tokens.num_tokens == size
    with pytest.raises(PromptTooLongError):
        cut(example(), 20, way, chat_tokenizer())


def test_a_tokenizer_without_a_template_is_an_error():
    with pytest.raises(ValueError, match="chat-template must be false, got true: the backbone's tokenizer has no temp"):
        cut(example(), 200, PromptWay(chat_template=True))


def test_messages_that_a_template_refuses_are_an_error_in_one_line():
    with pytest.raises(ValueError) as error:
        chat_ids([("user", "hi"), ("system", "be kind"), ("user", "hi")], chat_tokenizer())
    assert str(error.value) == (
        "the tokenizer's chat template takes no messages of user, system, user (system comes first): expected roles "
        "that it knows; change them in the data, or leave out chat-template"
    )
