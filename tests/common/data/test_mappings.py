"""Which mapping rows with some columns fit, and what a user's own pairs mean."""

import pytest

from common.data.mappings import BUILT_IN_MAPPINGS, detect, parse_columns
from common.data.multiple_choice import choices_of, picked
from common.data.rows import example_of, prompt_fields

COLUMNS = {
    "plain": ["task instruction input output", "task input output", "task output instruction domain source split id"],
    "alpaca": ["instruction input output text", "instruction output", "input output"],
    "dolly": ["instruction context response category", "instruction response"],
    "superni": ["task_name id definition inputs targets"],
    "flan": ["inputs targets task", "inputs targets _template_idx _task_source _task_name _template_type"],
    "messages": ["messages", "prompt prompt_id messages"],
    "multiple-choice": ["question choices answer subject", "id question choices answerKey", "question options label"],
}


@pytest.mark.parametrize(("name", "columns"), [(name, text) for name, texts in COLUMNS.items() for text in texts])
def test_columns_fit_one_mapping(name, columns):
    assert detect(columns.split(), "here").name == name


def test_every_built_in_mapping_is_its_own_name():
    assert set(BUILT_IN_MAPPINGS) == set(COLUMNS)
    assert all(parse_columns(name) is mapping for name, mapping in BUILT_IN_MAPPINGS.items())
    assert parse_columns("") is None


def test_pairs_name_columns_and_constants():
    mapping = parse_columns(" instruction = the question , output=answer,task='a, b=c',source='' ")
    assert mapping.columns["instruction"] == ("the question",)
    assert (mapping.columns["input"], mapping.columns["output"]) == (("input",), ("answer",))
    assert mapping.constants == {"task": "a, b=c", "source": ""}
    row = {"the question": "q", "input": "i", "answer": 2.5, "task": "other", "source": "web", "'task'": "x"}
    example = example_of(row, mapping, "here", "file", "test")
    assert (example.instruction, example.input, example.output) == ("q", "i", "2.5")
    assert (example.task, example.domain, example.source) == ("a, b=c", "a, b=c", "")


def test_a_prompt_that_a_constant_gives_needs_no_column():
    mapping = parse_columns("instruction='Go on.'")
    mapping.check(["output"], "here")
    assert example_of({"output": "b"}, mapping, "here", "file", "test").prompt == "Go on.\n"


def test_a_row_without_a_task_is_of_its_tables():
    row = {"instruction": "a", "response": "b", "category": None}
    assert example_of(row, BUILT_IN_MAPPINGS["dolly"], "here", "file", "train").task == "file"


def test_a_list_of_answers_gives_the_first():
    row = {"definition": "d", "inputs": "i", "targets": ["a", "b"]}
    assert example_of(row, BUILT_IN_MAPPINGS["superni"], "here", "file", "train").output == "a"


def test_plain_rows_may_have_choices_which_are_not_shown():
    row = {"task": "t", "input": "i", "output": "no", "choices": ["yes", "no"]}
    example = example_of(row, BUILT_IN_MAPPINGS["plain"], "here", "file", "train")
    assert (example.prompt, example.output, example.choices) == ("i\n", "no", ("yes", "no"))


@pytest.mark.parametrize(
    ("choices", "answer", "meant"),
    [
        (["b", "c"], 0, "b"),
        (["b", "c"], 1, "c"),
        (["b", "c"], "1", "c"),
        (["b", "c"], "A", "b"),
        (["b", "c"], "c", "c"),
        (["1", "2"], 1, "2"),  # a number is an index
        (["1", "2"], "2", "2"),  # a text is a text
        (["A", "B"], "B", "B"),
        (["same", "same", "other"], "same", "same"),
        ({"text": ["b", "c"], "label": ["A", "B"]}, "B", "c"),
        ({"text": ["b", "c"], "label": ["1", "2"]}, "1", "b"),  # a label counts first
        ({"text": ["b", "c"], "label": [1, 2]}, 2, "c"),
        ({"text": ["B", "A"], "label": ["A", "B"]}, "A", "B"),
        ({"text": ["b", "c"], "label": ["x", "y"]}, "c", "c"),
        ({"text": ["b", "c"]}, "B", "c"),
    ],
)
def test_an_answer_is_label_index_letter_or_text(choices, answer, meant):
    assert picked(answer, *choices_of(choices, "here"), "here", "answer") == meant


@pytest.mark.parametrize("answer", ["1", "2", True, 1.0, None, [], "a"])
def test_an_answer_of_no_or_two_meanings_is_refused(answer):
    choices = ["1", "2"] if answer == "1" else ["b", "2", "c"]
    with pytest.raises(ValueError, match=r"^here has 'answer' .*: expected"):
        picked(answer, *choices_of(choices, "here"), "here", "answer")


@pytest.mark.parametrize("answer", ["A", "0"])
def test_where_there_are_labels_letters_and_numbers_are_none(answer):
    with pytest.raises(ValueError, match="expected one of x, y, or a choice's text"):
        picked(answer, *choices_of({"text": ["b", "c"], "label": ["x", "y"]}, "here"), "here", "answer")


def test_prompt_fields_are_texts():
    assert prompt_fields({"instruction": "a", "input": None}, "here") == ("a", "")
    with pytest.raises(
        ValueError, match=r"^here has neither 'instruction' nor 'input': expected a text in one of them"
    ):
        prompt_fields({}, "here")
