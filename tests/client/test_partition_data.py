"""A client's data: its own examples, tokenized in order, once."""

from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_backbone

from client.partition_data import load_partition_data
from common.batches import tokenize
from common.config import default_run_config, read_config
from common.partition import partitions_of


def config(**changes):
    small = {"train-examples": 10, "eval-examples": 6}
    defaults = default_run_config(Path(__file__).parents[2])
    return read_config(defaults | small | {name.replace("_", "-"): value for name, value in changes.items()})


def test_a_client_gets_its_partition_by_split():
    for split in ("test", "validation"):
        settings = config(eval_split=split)
        data = load_partition_data(settings, 3, tiny_backbone())
        owned = partitions_of(settings)[3]
        assert data.train.examples == tuple(example for example in owned if example.split == "train")
        assert data.evaluation.examples == tuple(example for example in owned if example.split == split)
        for part in (data.train, data.evaluation):
            assert part.tokenized == tuple(tokenize(example, byte_tokenizer(), 256) for example in part.examples)


def test_sequences_are_as_long_as_config_and_backbone_allow():
    backbone = tiny_backbone()
    for allowed, longest in ((40, 40), (512, 256)):
        data = load_partition_data(config(max_sequence_tokens=allowed), 0, backbone)
        lengths = [text.num_tokens for text in data.train.tokenized]
        assert max(lengths) <= longest
        assert (max(lengths) == 40) == (allowed == 40)


def test_data_is_tokenized_once_per_process():
    backbone = tiny_backbone()
    assert load_partition_data(config(), 0, backbone) is load_partition_data(config(), 0, backbone)


def test_answers_that_do_not_fit_are_left_out_and_counted(caplog):
    backbone, longest = tiny_backbone(), 5
    data = load_partition_data(config(max_sequence_tokens=longest), 0, backbone)
    owned = [example for example in partitions_of(config(max_sequence_tokens=longest))[0] if example.split == "train"]
    fitting = [example for example in owned if len(example.output) + 1 < longest]  # bytes, and the end of the text
    assert 0 < len(fitting) < len(owned)
    assert list(data.train.examples) == fitting
    assert len(data.train.tokenized) == len(fitting)
    assert f"client 0 leaves out {len(owned) - len(fitting)} of {len(owned)} train examples" in caplog.text


def test_a_client_without_fitting_answers_is_an_error():
    with pytest.raises(ValueError, match=r"none of the \d+ train answers of client 0 fits into 2 tokens"):
        load_partition_data(config(max_sequence_tokens=2), 0, tiny_backbone())
