"""The byte-level tokenizer: complete, reversible, and the same after a round trip through its files."""

import pytest
from transformers import AutoTokenizer

from common.tokenizer import encode_documents, load_tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat\nthe end", "une école, 数字 and 🙂"] * 20


def test_a_vocabulary_of_259_is_one_token_per_byte():
    tokenizer = train_tokenizer(TEXTS, 259)
    assert len(tokenizer) == 259
    for text in ["plain ascii, 2 spaces  and\na tab\t", "école 🙂", ""]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_special_tokens_have_the_first_ids_and_only_bos_is_added():
    tokenizer = train_tokenizer(TEXTS, 259)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    ids = tokenizer("ab")["input_ids"]
    assert ids[0] == 0 and len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_a_larger_vocabulary_merges_within_words_only():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert 259 < len(tokenizer) <= 300
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("the cat\nthe mat", add_special_tokens=False)["input_ids"])
    assert len(tokens) < len("the cat\nthe mat")
    assert all("Ġ" not in token[1:] and (token == "Ċ" or "Ċ" not in token) for token in tokens)
    assert (
        tokenizer.decode(tokenizer("the cat\nthe mat 🙂")["input_ids"], skip_special_tokens=True)
        == "the cat\nthe mat 🙂"
    )


def test_saved_and_loaded_is_the_same(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 270)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path, local_files_only=True), load_tokenizer(tmp_path)):
        assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
        assert len(loaded) == len(tokenizer)


def test_documents_are_encoded_between_bos_and_eos():
    tokenizer = train_tokenizer(TEXTS, 259)
    a, b = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert encode_documents(tokenizer, ["ab", ""]) == [[0, a, b, 1], [0, 1]]


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"vocab-size must be at least 259 .* got 258"):
        train_tokenizer(TEXTS, 258)


def test_a_missing_or_endless_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    tokenizer = train_tokenizer(TEXTS, 259)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no eos token"):
        load_tokenizer(tmp_path)
