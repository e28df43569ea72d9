"""A hand-written prompt: the text, solved examples of the task, and then what is asked, unchanged."""

from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_backbone

from client.evaluator import evaluate
from client.hand_written import prompted, with_hand_written_prompt
from client.partition_data import PartitionData, TokenizedSplit
from common.batches import tokenize
from common.config import default_run_config, read_config
from common.example import Example

TEXT = "Answer in one word."


def config(**changes):
    settings = {"method": "hand-written", "prompt-text": TEXT, "num-shots": 2}
    defaults = default_run_config(Path(__file__).parents[2])
    return read_config(defaults | settings | {name.replace("_", "-"): value for name, value in changes.items()})


def example(split, task, number, size=3):
    return Example(split, task, "letters", "", f"{task} it", f"in {split} {number}".ljust(size, "."), f"out {number}")


def data_of(train, evaluation):
    parts = (
        TokenizedSplit(tuple(some), tuple(tokenize(each, byte_tokenizer(), 256) for each in some))
        for some in (train, evaluation)
    )
    return PartitionData(*parts)


TRAIN = [example("train", task, number) for number in range(6) for task in ("shout", "turn")]
TEST = [example("test", task, number) for number in range(4) for task in ("shout", "turn", "new")]
DATA = data_of(TRAIN, TEST)


def texts_of(config, data=DATA, backbone=None):
    """Return what stands before each evaluation example's answer."""
    asked = with_hand_written_prompt(config, data, backbone or tiny_backbone())
    assert asked.examples == data.evaluation.examples
    return [byte_tokenizer().decode(text.prompt_ids, skip_special_tokens=True) for text in asked.tokenized]


def solved(number, task):
    return f"{task} it\nin train {number}\nout {number}\n"


def test_text_and_shots_stand_before_the_instruction():
    found = prompted(TEST[0], TEXT, [TRAIN[0], TRAIN[2]])
    assert found.prompt == f"{TEXT}\n{solved(0, 'shout')}{solved(1, 'shout')}shout it\nin test 0\n"
    assert found.output == TEST[0].output
    assert prompted(TEST[0], "", []) == TEST[0]
    assert prompted(TEST[0], TEXT, []).prompt == f"{TEXT}\nshout it\nin test 0\n"


def test_shots_are_solved_examples_of_the_same_task_from_the_training_data():
    chosen = set()
    for each, text in zip(TEST, texts_of(config()), strict=True):
        assert text.startswith(f"{TEXT}\n") and text.endswith(each.prompt)
        shots = text.removeprefix(f"{TEXT}\n").removesuffix(each.prompt)
        possible = {solved(number, each.task): number for number in range(6)}
        found = [shot for shot in possible if shot in shots]
        if each.task == "new":  # nobody solved one
            assert shots == ""
            continue
        assert len(found) == 2 and len(shots) == len("".join(found))
        assert "test" not in shots
        chosen.add(tuple(sorted(possible[shot] for shot in found)))
    assert len(chosen) > 1  # an example has shots of its own


def test_there_are_no_more_shots_than_solved_examples():
    (text,) = texts_of(config(num_shots=9), data_of(TRAIN[:4], TEST[:1]))
    assert text.count("\nout ") == 2


def test_the_seed_decides():
    first, same, other = (texts_of(config(seed=seed)) for seed in (3, 3, 4))
    assert first == same != other


def test_an_examples_shots_do_not_depend_on_its_neighbours():
    assert texts_of(config(), data_of(TRAIN, TEST[3:5])) == texts_of(config())[3:5]


@pytest.mark.parametrize(("num_shots", "room", "left"), [(3, 1000, 3), (3, 0, 3), (3, -1, 2), (2, -1, 1), (1, -1, 0)])
def test_whole_shots_are_left_out_until_the_rest_fits(num_shots, room, left):
    data = data_of(TRAIN, TEST[:1])
    (whole,) = with_hand_written_prompt(config(num_shots=num_shots), data, tiny_backbone()).tokenized
    settings = config(num_shots=num_shots, max_sequence_tokens=whole.num_tokens + room)
    (text,) = texts_of(settings, data)
    assert text.count("\nout ") == left
    assert text.startswith(f"{TEXT}\n") and text.endswith(TEST[0].prompt)
    if left == num_shots - 1:
        (full,) = texts_of(config(num_shots=num_shots), data)
        assert full.startswith(text.removesuffix(TEST[0].prompt))  # the first shots are kept


def test_without_shots_a_text_that_is_too_long_loses_its_beginning():
    settings = config(num_shots=2, max_sequence_tokens=20)
    (asked,) = with_hand_written_prompt(settings, data_of(TRAIN, TEST[:1]), tiny_backbone()).tokenized
    alone = tokenize(TEST[0], byte_tokenizer(), 20)
    assert asked.num_tokens == 20
    assert asked.prompt_ids == alone.prompt_ids[-len(asked.prompt_ids) :]


@pytest.mark.parametrize(("way", "longest"), [("cut-input", 30), ("leave-out", 40)])
def test_a_text_that_does_not_fit_is_left_out_where_its_beginning_may_not_be_cut(way, longest):
    settings = config(num_shots=2, max_sequence_tokens=longest, too_long_prompts=way)
    data = data_of(TRAIN, TEST[:1])
    (asked,) = with_hand_written_prompt(settings, data, tiny_backbone()).tokenized
    assert asked == data.evaluation.tokenized[0]


def test_the_backbones_longest_text_counts():
    texts = with_hand_written_prompt(config(num_shots=6, prompt_text="long " * 30), DATA, tiny_backbone()).tokenized
    assert 200 < max(text.num_tokens for text in texts) <= 256


def test_answers_are_unchanged():
    asked = with_hand_written_prompt(config(), DATA, tiny_backbone())
    for text, plain in zip(asked.tokenized, DATA.evaluation.tokenized, strict=True):
        assert (text.answer_ids, text.task) == (plain.answer_ids, plain.task)


def test_without_text_and_shots_nothing_changes():
    asked = with_hand_written_prompt(config(prompt_text="", num_shots=0), DATA, tiny_backbone())
    assert asked == DATA.evaluation


def test_the_scores_are_those_of_the_prompted_examples():
    backbone = tiny_backbone()
    asked = with_hand_written_prompt(config(num_shots=0), DATA, backbone)
    by_hand = [Example(**(vars(each) | {"instruction": f"{TEXT}\n{each.instruction}"})) for each in TEST]
    expected = evaluate(backbone, by_hand, [tokenize(each, byte_tokenizer(), 256) for each in by_hand])
    found = evaluate(backbone, asked.examples, asked.tokenized)
    assert found.scores == expected.scores
    assert found.scores != evaluate(backbone, TEST, DATA.evaluation.tokenized).scores
    assert {task: use.tolist() for task, use in found.expert_use.items()} == {task: [1.0] for task in found.scores}
