"""A client's own data, tokenized once per process."""

from dataclasses import dataclass
from functools import cache

from common.backbone import Backbone
from common.batches import TokenizedExample, tokenize
from common.config import Config
from common.example import Example
from common.partition import partitions_of


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


# One entry per client of a simulation; a run's data is small beside its backbone.
@cache
def load_partition_data(config: Config, partition: int, backbone: Backbone) -> PartitionData:
    """Load and tokenize the examples of one partition."""
    owned = partitions_of(config)[partition]
    longest = min(config.max_sequence_tokens, backbone.max_positions)

    def split(name: str) -> TokenizedSplit:
        examples = tuple(example for example in owned if example.split == name)
        return TokenizedSplit(examples, tuple(tokenize(example, backbone.tokenizer, longest) for example in examples))

    return PartitionData(split("train"), split(config.eval_split))
