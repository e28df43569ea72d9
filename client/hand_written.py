"""A prompt that nobody trains: words before the instruction, and solved examples (Brown et al. 2020, section 2)."""

import random
from collections.abc import Sequence
from dataclasses import replace

from client.partition_data import PartitionData, TokenizedSplit, longest_text, prompt_way
from common.backbone import Backbone
from common.batches import TokenizedExample, tokenize
from common.config import Config
from common.example import Example
from common.prompt_tokens import PromptTooLongError, PromptWay

UNCUT = 2**31


def with_hand_written_prompt(config: Config, data: PartitionData, backbone: Backbone) -> TokenizedSplit:
    """Return the evaluation examples with the configured text and shots before each."""
    longest = longest_text(config, backbone)
    of_task: dict[str, list[Example]] = {}
    for example in data.train.examples:
        of_task.setdefault(example.task, []).append(example)
    way = prompt_way(config)
    tokenized = []
    for example, alone in zip(data.evaluation.examples, data.evaluation.tokenized, strict=True):
        solved = of_task.get(example.task, [])
        rng = random.Random(f"{config.seed}/shots/{example.prompt}")
        shots = rng.sample(solved, min(config.num_shots, len(solved)))
        try:
            tokenized.append(_longest_that_fits(example, config.prompt_text, shots, backbone, longest, way))
        except PromptTooLongError:  # the text is not worth an example that fits without it
            tokenized.append(alone)
    return replace(data.evaluation, tokenized=tuple(tokenized))


def prompted(example: Example, text: str, shots: Sequence[Example]) -> Example:
    """Return an example whose instruction comes after a text and solved examples."""
    before = [text] if text else []
    before += [shot.prompt + shot.output for shot in shots]
    return replace(example, instruction="\n".join([*before, example.instruction]))


def _longest_that_fits(
    example: Example, text: str, shots: Sequence[Example], backbone: Backbone, longest: int, way: PromptWay
) -> TokenizedExample:
    """Leave out shots until the rest fits: half a shot would mislead."""
    for count in range(len(shots), 0, -1):
        tokens = tokenize(prompted(example, text, shots[:count]), backbone.tokenizer, UNCUT, way)
        if tokens.num_tokens <= longest:
            return tokens
    return tokenize(prompted(example, text, ()), backbone.tokenizer, longest, way)
