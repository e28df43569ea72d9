"""Texts for benchmarks: random tokens, of the lengths that instructions and answers of real data have."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.backbone import Backbone
from common.batches import TokenizedExample

# Tokens of prompt and answer, of 256 training examples each of Super-NaturalInstructions and of short ones of
# databricks-dolly-15k, at 3.5 characters a token, prompts cut to 512 tokens with their answers.
MIXED_LENGTHS: list[tuple[int, int]] = [
    (prompt, answer) for prompt, answer in json.loads((Path(__file__).parent / "mixed_lengths.json").read_text())
]


def random_texts(backbone: Backbone, lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[TokenizedExample]:
    """Draw a text for each pair of lengths."""
    rng = np.random.default_rng(seed)
    vocab = int(backbone.model.config.get_text_config().vocab_size)
    drawn = [rng.integers(3, vocab, size=prompt + answer).tolist() for prompt, answer in lengths]
    return [
        TokenizedExample(ids[:prompt], ids[prompt:], [False] * prompt)
        for ids, (prompt, _) in zip(drawn, lengths, strict=True)
    ]


def batches_of(texts: Sequence[TokenizedExample], batch_size: int) -> list[Sequence[TokenizedExample]]:
    """Cut texts into whole batches, in their order."""
    return [texts[start : start + batch_size] for start in range(0, len(texts) - batch_size + 1, batch_size)]
