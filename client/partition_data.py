"""A client's own data, tokenized once per process."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from client.gate_encoder import encoded
from client.prefix_cache import PrefixCache, cache_directory
from common.adapter_spec import PROMPT_METHODS
from common.backbone import Backbone
from common.batches import AnswerTooLongError, TokenizedExample, tokenize
from common.config import OWN_PARTITION, Config
from common.data_counts import CutCounts, DataCounts
from common.decoder import injection_layer, probe_kv_shapes
from common.example import Example
from common.partition import partitions_of, reading_of
from common.prompt_tokens import PromptTooLongError, PromptWay

# A child of Flower's logger, so that it is shown where the client runs.
log = logging.getLogger("flwr.fedmops")


@dataclass(frozen=True)
class TokenizedSplit:
    """Examples and their tokens, in the same order."""

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]
    counts: CutCounts = field(default_factory=CutCounts)


@dataclass(frozen=True)
class PartitionData:
    """What a client trains on and what it is evaluated on; bad rows of the data that it reads are not in it."""

    train: TokenizedSplit
    evaluation: TokenizedSplit
    num_bad_rows: int = 0
    is_own: bool = False

    @property
    def counts(self) -> DataCounts:
        """What was cut, left out or skipped."""
        return DataCounts(self.train.counts, self.evaluation.counts, self.num_bad_rows, self.is_own)


def longest_text(config: Config, backbone: Backbone) -> int:
    """Return how many tokens an example may have: virtual ones stand before it, and take up positions."""
    virtual = config.num_virtual_tokens if config.method in PROMPT_METHODS else 0
    return min(config.max_sequence_tokens, backbone.max_positions - virtual)


def prompt_way(config: Config) -> PromptWay:
    """Return how a run's prompts become tokens."""
    return PromptWay(config.too_long_prompts, config.chat_template)


# One entry per client of a simulation; a run's data is small beside its backbone.
@cache
def load_partition_data(config: Config, partition: int, backbone: Backbone) -> PartitionData:
    """Load and tokenize the examples of one partition.

    Those that do not fit are left out, or their prompts cut, and counted in the log. Raises ValueError when none is
    left.
    """
    owned = partitions_of(config)[partition]
    return PartitionData(
        train=_with_states(config, backbone, _split(config, partition, backbone, owned, "train")),
        evaluation=_with_states(config, backbone, _split(config, partition, backbone, owned, config.eval_split)),
        num_bad_rows=reading_of(config).counts.num_bad,
        is_own=config.partition == OWN_PARTITION,
    )


def _with_states(config: Config, backbone: Backbone, split: TokenizedSplit) -> TokenizedSplit:
    """Keep what a mixture's steps begin with: states, and where answers alone see prompts, what comes before them."""
    layer = injection_layer(backbone, config.injection_layer)
    if config.method != "mixture" or not config.prefix_cache_gib:
        return split
    cache = PrefixCache(cache_directory(), int(config.prefix_cache_gib * 2**30))
    tokenized = split.tokenized
    if layer:
        tokenized = cache.with_states(backbone, layer, tokenized)
    if config.prompt_positions == "answer":
        tokenized = cache.with_past(backbone, probe_kv_shapes(backbone, layer), tokenized)
    return replace(split, tokenized=tokenized)


def _split(config: Config, partition: int, backbone: Backbone, owned: Sequence[Example], name: str) -> TokenizedSplit:
    longest, way = longest_text(config, backbone), prompt_way(config)
    of_split = [example for example in owned if example.split == name]
    examples, tokenized = [], []
    faults: Counter[type[ValueError]] = Counter()
    for example in of_split:
        try:
            tokenized.append(tokenize(example, backbone.tokenizer, longest, way))
            examples.append(example)
        except (AnswerTooLongError, PromptTooLongError) as error:
            faults[type(error)] += 1
    counts = CutCounts(
        num_examples=len(of_split),
        num_answers_too_long=faults[AnswerTooLongError],
        num_prompts_too_long=faults[PromptTooLongError],
        num_prompts_cut=sum(tokens.prompt_cut for tokens in tokenized),
    )
    if not tokenized:
        what, hint = "answers", ""
        if counts.num_prompts_too_long:
            what = "examples"
            hint = f" ({counts.num_prompts_too_long} prompts do not: too-long-prompts=cut-start would cut them)"
        raise ValueError(
            f"none of the {len(of_split)} {name} {what} of client {partition} fits into {longest} tokens{hint}, the "
            "least of max-sequence-tokens and the backbone's longest text less num-virtual-tokens: change them or "
            "choose another backbone"
        )
    for number, said in (
        (counts.num_answers_too_long, "leaves out %d of %d %s examples: their answers do not fit into %d tokens"),
        (counts.num_prompts_too_long, "leaves out %d of %d %s examples: their prompts do not fit into %d tokens"),
        (counts.num_prompts_cut, "cuts the prompts of %d of %d %s examples: they do not fit into %d tokens"),
    ):
        if number:
            log.warning(f"client %d {said}", partition, number, len(of_split), name, longest)
    if config.gate_encoder:
        inputs = encoded(examples, config.gate_encoder, config.device)
        tokenized = [replace(tokens, gate_input=row) for tokens, row in zip(tokenized, inputs, strict=True)]
    return TokenizedSplit(tuple(examples), tuple(tokenized), counts)


@lru_cache(maxsize=1)
def load_pooled_training_data(config: Config, backbone: Backbone) -> tuple[TokenizedExample, ...]:
    """Return all clients' training examples, which only a centralised run may see together."""
    partitions = (load_partition_data(config, partition, backbone) for partition in range(config.num_clients))
    return tuple(example for partition in partitions for example in partition.train.tokenized)
