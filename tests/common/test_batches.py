"""Tokens of an example, and where they stand in a batch."""

import pytest
import torch
from tiny import CPU, byte_tokenizer, examples, tokenized

from common.batches import IGNORED, TokenizedExample, collate, in_order_of_length, pad_id, tokenize
from common.example import Example

BOS, EOS, PAD = 0, 1, 2


def example(instruction, text, output):
    return Example("train", "task", "domain", "", instruction, text, output)


def ids(text):
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_begins_with_bos_and_an_answer_ends_with_eos():
    tokens = tokenize(example("do", "it", "now"), byte_tokenizer(), 100)
    assert tokens.prompt_ids == [BOS, *ids("do\nit\n")]
    assert tokens.answer_ids == [*ids("now"), EOS]
    assert tokens.special == [True] + [False] * 6
    assert tokens.num_tokens == 11


@pytest.mark.parametrize(("instruction", "text", "prompt"), [("do", "", "do\n"), ("", "it", "it\n")])
def test_an_empty_instruction_or_input_leaves_no_line(instruction, text, prompt):
    assert example(instruction, text, "now").prompt == prompt


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays():
    long = example("a" * 50, "the end", "now")
    tokens = tokenize(long, byte_tokenizer(), 12)
    assert tokens.num_tokens == 12
    assert tokens.prompt_ids == ids(" the end\n"[-8:])
    assert tokens.answer_ids == [*ids("now"), EOS]
    assert not any(tokens.special)
    tight = tokenize(long, byte_tokenizer(), 5)
    assert (tight.prompt_ids, tight.answer_ids) == (ids("\n"), [*ids("now"), EOS])


def test_an_answer_that_leaves_no_room_is_an_error():
    with pytest.raises(ValueError, match="an answer of task 'task' has 4 tokens, but max-sequence-tokens is 4: raise"):
        tokenize(example("do", "it", "now"), byte_tokenizer(), 4)


def test_a_batch_is_left_padded():
    short = TokenizedExample([BOS, 11, 12], [21, EOS], [True, False, False], "a")
    long = TokenizedExample([BOS, 31, 32, 33], [41, 42, EOS], [True, False, False, False], "b")
    batch = collate([short, long], PAD, CPU)
    assert batch.input_ids.tolist() == [[PAD, PAD, BOS, 11, 12, 21, EOS], [BOS, 31, 32, 33, 41, 42, EOS]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert batch.input_mask.tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, 21, EOS], [41, 42, EOS]]
    assert batch.num_logits == 4
    assert batch.from_last_input_on.tolist() == [[False] * 4 + [True] * 3, [False] * 3 + [True] * 4]
    assert batch.tasks == ("a", "b")
    tensors = (batch.input_ids, batch.attention_mask, batch.input_mask, batch.labels)
    assert {tensor.dtype for tensor in tensors} == {torch.long}


def test_a_tokenizer_without_padding_pads_with_eos():
    tokenizer = byte_tokenizer()
    assert pad_id(tokenizer) == PAD
    tokenizer = type("Tokenizer", (), {"pad_token_id": None, "eos_token_id": EOS})
    assert pad_id(tokenizer) == EOS


def test_batches_in_order_of_length_hold_every_index_once():
    texts = tokenized(examples(11))
    batches = list(in_order_of_length(texts, 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(11))
    lengths = [texts[index].num_tokens for index in order]
    assert lengths == sorted(lengths)
