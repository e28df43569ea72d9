"""A client's data: its own examples, tokenized in order, once."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from families import family_backbone
from tiny import CPU, byte_tokenizer, tiny_backbone, tiny_llama

from client.adapter import AdaptedBackbone
from client.partition_data import load_partition_data, longest_text
from common.adapter_spec import PROMPT_METHODS
from common.backbone import Backbone
from common.batches import collate, tokenize
from common.config import default_run_config, read_config
from common.data_counts import CutCounts, DataCounts
from common.partition import partitions_of
from common.prompt_tokens import PromptWay


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


@pytest.mark.parametrize("way", ["cut-start", "cut-input", "leave-out"])
def test_what_is_left_out_and_what_is_cut_is_counted(caplog, way):
    settings = config(max_sequence_tokens=50, too_long_prompts=way, seed=7)
    data = load_partition_data(settings, 0, tiny_backbone())
    for name, part in (("train", data.train), ("test", data.evaluation)):
        owned = [example for example in partitions_of(settings)[0] if example.split == name]
        sizes = {example: 1 + len(example.prompt.encode()) + len(example.output.encode()) + 1 for example in owned}
        too_long = [example for example in owned if sizes[example] > 50]
        counts = part.counts
        assert 0 < len(too_long) < len(owned)
        assert (counts.num_examples, counts.num_answers_too_long) == (len(owned), 0)
        assert counts.num_left_out == len(owned) - len(part.examples) == counts.num_prompts_too_long
        assert counts.num_prompts_cut + counts.num_prompts_too_long == len(too_long)
        assert counts.num_prompts_cut == (0 if way == "leave-out" else len(set(too_long) & set(part.examples)))
        for example, tokens in zip(part.examples, part.tokenized, strict=True):
            assert tokens.prompt_cut == (example in too_long)
            assert tokens == tokenize(example, byte_tokenizer(), 50, PromptWay(way))
        said = {
            f"client 0 cuts the prompts of {counts.num_prompts_cut} of {len(owned)} {name} examples": way
            != "leave-out",
            f"client 0 leaves out {len(too_long)} of {len(owned)} {name} examples: their prompts": way == "leave-out",
        }
        assert {line: line in caplog.text for line in said} == said


def test_nothing_is_counted_or_logged_where_everything_fits(caplog):
    data = load_partition_data(config(seed=8), 1, tiny_backbone())
    assert data.train.counts == CutCounts(num_examples=len(data.train.examples))
    assert caplog.text == ""


@pytest.mark.parametrize("partition", ["own", "iid"])
def test_bad_rows_are_counted_and_whose_they_are(tmp_path, partition):
    rows = [{"instruction": f"say {n}", "output": "" if n % 10 == 0 else "yes"} for n in range(60)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = config(data=str(path), skip_bad_rows=True, partition=partition, num_clients=2)
    data = load_partition_data(settings, 1, tiny_backbone())
    expected = DataCounts(data.train.counts, data.evaluation.counts, num_bad_rows=6, is_own=partition == "own")
    assert data.counts == expected
    assert data.train.counts.num_examples > 0


def test_a_client_without_fitting_prompts_is_an_error():
    settings = config(max_sequence_tokens=16, too_long_prompts="leave-out")
    with pytest.raises(ValueError, match=r"examples of client 0 fits into 16 tokens \(\d+ prompts do not: too-long-pr"):
        load_partition_data(settings, 0, tiny_backbone())


def test_prompts_stand_in_the_chat_template(tmp_path):
    tokenizer = deepcopy(byte_tokenizer())
    tokenizer.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").touch()
    backbone = Backbone(tiny_llama(), tokenizer, "tiny", CPU)
    data = load_partition_data(config(chat_template=True, backbone=str(tmp_path)), 0, backbone)
    for example, tokens in zip(data.train.examples, data.train.tokenized, strict=True):
        assert tokenizer.decode(tokens.prompt_ids) == f"[{example.prompt.removesuffix(chr(10))}]"
    with pytest.raises(ValueError, match="chat-template must be false, got true: the backbone's tokenizer has no"):
        load_partition_data(config(chat_template=True, backbone="owner/name"), 0, tiny_backbone())


def test_a_client_without_fitting_answers_is_an_error():
    with pytest.raises(ValueError, match=r"none of the \d+ train answers of client 0 fits into 2 tokens"):
        load_partition_data(config(max_sequence_tokens=2), 0, tiny_backbone())


@pytest.mark.parametrize(
    ("method", "longest"), [("prompt-tuning", 24), ("prefix-tuning", 24), ("multitask-prompt-tuning", 24), ("lora", 48)]
)
def test_virtual_tokens_take_up_positions_of_the_backbone(method, longest):
    """A model of learned positions has none beyond its last; max-sequence-tokens counts the text alone."""
    backbone = Backbone(tiny_llama(max_position_embeddings=48), byte_tokenizer(), "tiny", CPU)
    data = load_partition_data(config(method=method, num_virtual_tokens=24), 0, backbone)
    assert max(text.num_tokens for text in data.train.tokenized) == longest
    assert longest_text(config(method=method, num_virtual_tokens=24, max_sequence_tokens=23), backbone) == 23


@pytest.mark.parametrize("method", PROMPT_METHODS)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_longest_text_fits_behind_virtual_tokens_where_positions_are_learned(method, family):
    changes = {"n_positions": 64} if family == "gpt2" else {"max_position_embeddings": 64, "num_key_value_heads": 4}
    backbone = family_backbone(family, **changes)
    settings = config(method=method, num_virtual_tokens=24)
    texts = load_partition_data(settings, 0, backbone).train.tokenized
    longest = collate([max(texts, key=lambda text: text.num_tokens)], 2, CPU)
    assert longest.input_ids.shape[1] == 40
    with AdaptedBackbone(backbone, settings, longest.tasks) as adapted:
        assert adapted.logits(longest)[0].isfinite().all()


def test_more_virtual_tokens_than_positions_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"fits into -44 tokens, the least of .* less num-virtual-tokens: change them"):
        load_partition_data(config(method="prefix-tuning", num_virtual_tokens=300), 0, tiny_backbone())
