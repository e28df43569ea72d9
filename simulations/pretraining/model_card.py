"""The model card of a pre-trained backbone: how it came about, so that anyone can repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class TrainingRecord:
    """What a run of `fedmops pretrain` did and reached."""

    options: Mapping[str, object]
    num_parameters: int
    device: str
    num_tokens: int
    seconds: float
    nats_per_token: float
    bits_per_character: float

    @property
    def summary(self) -> str:
        return (
            f"{self.num_tokens:,} tokens in {self.seconds:,.0f} s: validation loss {self.nats_per_token:.4f} nats per "
            f"token, {self.bits_per_character:.4f} bits per character"
        )


def command(options: Mapping[str, object]) -> str:
    """Return the command line that repeats a run, with every option that was set or has a default."""
    words = ["fedmops", "pretrain", str(options["output"])]
    for name, value in options.items():
        if name in ("output", "resume") or value is None or value is False:
            continue
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def model_card(record: TrainingRecord) -> str:
    """Return the text of the card, with the front matter that model hubs read."""
    options = record.options
    corpus = "the built-in skills (generated)" if options["text"] == "skills" else f"`{options['text']}`"
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [fedmops, llama]
---

# A small language model, pre-trained by fedmops

A Llama-type causal language model of {record.num_parameters:,} parameters, made as a frozen backbone for fedmops.

| | |
|---|---|
| corpus | {corpus}, seed {options["seed"]} |
| tokens seen | {record.num_tokens:,} |
| time | {record.seconds:,.0f} seconds on {record.device} |
| validation loss | {record.nats_per_token:.4f} nats per token, {record.bits_per_character:.4f} bits per character |
| weights stored in | {options["storage_dtype"]} |
| software | torch {version("torch")}, transformers {version("transformers")} |

The validation loss is that of the stored weights on documents held out from training, <s> and </s> included in the
tokens and not in the characters. Made by

```
{command(options)}
```
"""
