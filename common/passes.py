"""Passes: texts of like length go through the backbone together, so that little padding is computed."""

from collections.abc import Sequence

from common.backbone import Backbone
from common.batches import Batch, TokenizedExample, collate, pad_id

# A pass costs time whatever its tokens, for its kernels' launches: in each layer about as much as this many
# multiplications of weights by tokens (docs/log.md), on a GPU some hundred tokens of an 8 B model.
MULTIPLICATIONS_OF_A_LAUNCH = {"cpu": 2e8, "cuda": 1e11}


def passes(lengths: Sequence[int], most_tokens: int, overhead_tokens: float) -> list[list[int]]:
    """Split texts of these lengths (tokens) into passes; return the indices of each, longest texts first.

    The split is the one of least cost: tokens with padding, and `overhead_tokens` for each pass. A pass has at most
    `most_tokens` with padding, or one text.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    # cost[n]: the least for the n longest texts; the last pass of that split begins at begin[n].
    cost, begin = [0.0], [0]
    for end in range(1, len(order) + 1):
        starts = range(end - 1, -1, -1)
        allowed = [
            start for start in starts if start == end - 1 or (end - start) * lengths[order[start]] <= most_tokens
        ]
        best = min(allowed, key=lambda start: cost[start] + (end - start) * lengths[order[start]])
        cost.append(cost[best] + (end - best) * lengths[order[best]] + overhead_tokens)
        begin.append(best)
    split = []
    end = len(order)
    while end:
        split.append(order[begin[end] : end])
        end = begin[end]
    return split[::-1]


def batches_of_passes(backbone: Backbone, texts: Sequence[TokenizedExample], most_tokens: int) -> list[Batch]:
    """Split texts into passes and collate each."""
    lengths = [text.num_computed for text in texts]
    padding = pad_id(backbone.tokenizer)
    return [
        collate([texts[index] for index in indices], padding, backbone.device)
        for indices in passes(lengths, most_tokens, overhead_tokens(backbone))
    ]


def overhead_tokens(backbone: Backbone) -> float:
    """Return how many tokens cost as much as a pass without any; a layer has about 12 hidden^2 weights."""
    return MULTIPLICATIONS_OF_A_LAUNCH[backbone.device.type] / (12 * backbone.hidden_size**2)
