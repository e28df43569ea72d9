"""Texts as token ids: those that fit into a backbone, alone or in batches without padding."""

import contextlib
from collections.abc import Sequence
from itertools import groupby

from common.backbone import Backbone
from common.batches import AnswerTooLongError, Batch, TokenizedExample, collate, pad_id, tokenize
from common.example import Example

MAX_TOKENS = 512  # of a text, as the key max-sequence-tokens of a run
BATCH_SIZE = 16


def fitting(examples: Sequence[Example], backbone: Backbone) -> list[tuple[Example, TokenizedExample]]:
    """Tokenize examples, without those whose answers are too long. Raises ValueError when none of some is left."""
    longest = min(MAX_TOKENS, backbone.max_positions)
    found = []
    for example in examples:
        with contextlib.suppress(AnswerTooLongError):
            found.append((example, tokenize(example, backbone.tokenizer, longest)))
    if examples and not found:
        raise ValueError(f"none of {len(examples)} answers fits into {longest} tokens: choose other calibration texts")
    return found


def unpadded_batches(examples: Sequence[TokenizedExample], backbone: Backbone) -> list[Batch]:
    """Put examples of equal length together: without padding every input of a linear layer is a token's."""
    found = []
    for _, group in groupby(sorted(examples, key=_length), key=_length):
        same = list(group)
        found += [same[start : start + BATCH_SIZE] for start in range(0, len(same), BATCH_SIZE)]
    return [collate(batch, pad_id(backbone.tokenizer), backbone.device) for batch in found]


def _length(example: TokenizedExample) -> int:
    return example.num_tokens
