"""A client's own data, tokenized once per process."""

import contextlib
import logging
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from client.gate_encoder import encoded
from common.adapter_spec import PROMPT_METHODS
from common.backbone import Backbone
from common.batches import AnswerTooLongError, TokenizedExample, tokenize
from common.config import Config
from common.example import Example
from common.partition import partitions_of

# A child of Flower's logger, so that it is shown where the client runs.
log = logging.getLogger("flwr.fedmops")


@dataclass(frozen=True)
class TokenizedSplit:
    """Examples and their tokens, in the same order."""

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]


@dataclass(frozen=True)
class PartitionData:
    """What a client trains on and what it is evaluated on."""

    train: TokenizedSplit
    evaluation: TokenizedSplit


def longest_text(config: Config, backbone: Backbone) -> int:
    """Return how many tokens an example may have: virtual ones stand before it, and take up positions."""
    virtual = config.num_virtual_tokens if config.method in PROMPT_METHODS else 0
    return min(config.max_sequence_tokens, backbone.max_positions - virtual)


# One entry per client of a simulation; a run's data is small beside its backbone.
@cache
def load_partition_data(config: Config, partition: int, backbone: Backbone) -> PartitionData:
    """Load and tokenize the examples of one partition.

    Those whose answers do not fit are left out and counted in the log. Raises ValueError when none is left.
    """
    owned = partitions_of(config)[partition]
    longest = longest_text(config, backbone)

    def split(name: str) -> TokenizedSplit:
        fitting = []
        of_split = [example for example in owned if example.split == name]
        for example in of_split:
            with contextlib.suppress(AnswerTooLongError):
                fitting.append((example, tokenize(example, backbone.tokenizer, longest)))
        if not fitting:
            raise ValueError(
                f"none of the {len(of_split)} {name} answers of client {partition} fits into {longest} tokens, the "
                "least of max-sequence-tokens and the backbone's longest text less num-virtual-tokens: change them or "
                "choose another backbone"
            )
        if len(fitting) < len(of_split):
            log.warning(
                "client %d leaves out %d of %d %s examples: their answers do not fit into %d tokens",
                partition,
                len(of_split) - len(fitting),
                len(of_split),
                name,
                longest,
            )
        examples, tokenized = zip(*fitting, strict=True)
        if config.gate_encoder:
            inputs = encoded(examples, config.gate_encoder, config.device)
            tokenized = tuple(replace(tokens, gate_input=row) for tokens, row in zip(tokenized, inputs, strict=True))
        return TokenizedSplit(examples, tokenized)

    return PartitionData(split("train"), split(config.eval_split))


@lru_cache(maxsize=1)
def load_pooled_training_data(config: Config, backbone: Backbone) -> tuple[TokenizedExample, ...]:
    """Return all clients' training examples, which only a centralised run may see together."""
    partitions = (load_partition_data(config, partition, backbone) for partition in range(config.num_clients))
    return tuple(example for partition in partitions for example in partition.train.tokenized)
