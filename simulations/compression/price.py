"""What a backbone costs and gives, so that a pruned one can be held against its original."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from client.evaluator import EVALUATION_BATCH_SIZE, evaluate
from common.backbone import Backbone
from common.batches import Batch, TokenizedExample, collate, in_order_of_length, pad_id
from common.decoder import forward
from common.example import Example
from common.hub import local_directory
from common.perplexity import AnswerScore, total

SPEED_BATCH_SIZE, SPEED_SECONDS = 16, 2.0

Scored = tuple[Example, TokenizedExample]


@dataclass(frozen=True)
class Price:
    """A backbone's figures; the speed is the median of forward passes over one batch of held-out texts."""

    disk_bytes: int  # of the weights' files
    resident_bytes: int  # of the weights, in the dtype that the backbone computes in
    zero_share: float  # of all weights
    tokens_per_second: float
    perplexity: float  # of all answers together

    def figures(self) -> dict[str, str]:
        """Return the figures by name, as they are shown."""
        return {
            "weights on disk": f"{self.disk_bytes:,} bytes",
            "weights in memory": f"{self.resident_bytes:,} bytes",
            "zero weights": f"{self.zero_share:.1%}",
            "forward pass": f"{self.tokens_per_second:,.0f} tokens/s",
            "perplexity of answers": f"{self.perplexity:.3f}",
        }


def price_table(before: Price, after: Price, title: str) -> Table:
    """Hold a pruned backbone against its original."""
    table = Table("", title=title)
    for heading in ("backbone", "pruned"):
        table.add_column(heading, justify="right")
    for (name, was), now in zip(before.figures().items(), after.figures().values(), strict=True):
        table.add_row(name, was, now)
    return table


def measure(backbone: Backbone, held_out: Sequence[Scored], speed: float, on_share: Callable[[float], None]) -> Price:
    """Measure a backbone of known speed; `on_share` is told which share of the texts is scored."""
    weights = list(backbone.model.parameters())
    num_weights = sum(weight.numel() for weight in weights)
    return Price(
        disk_bytes=sum(
            path.stat().st_size for path in local_directory(backbone.model.name_or_path).glob("*.safetensors")
        ),
        resident_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        zero_share=sum(int((weight == 0).sum()) for weight in weights) / num_weights,
        tokens_per_second=speed,
        perplexity=answer_perplexity(backbone, held_out, on_share),
    )


def disk_bytes(backbone: Backbone) -> int:
    """Return the size of a backbone's weights on disk, as they were loaded from there."""
    files = local_directory(backbone.model.name_or_path).glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def resident_bytes(model: nn.Module) -> int:
    """Return what a model's weights and buffers take in memory, with what quantized ones keep beside their codes."""
    held: dict[int, int] = {}  # by address: tied weights count once
    for tensor in (*model.parameters(), *model.buffers()):
        for part in _parts(tensor):
            held[part.data_ptr()] = part.untyped_storage().nbytes()
    return sum(held.values())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of: torchao's, bitsandbytes' 8-bit and 4-bit ones, or itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))
        return
    yield tensor
    state = getattr(tensor, "quant_state", None)
    described = state.as_dict().values() if state is not None else ()
    for part in (*described, getattr(tensor, "CB", None), getattr(tensor, "SCB", None)):
        if isinstance(part, Tensor):
            yield part


@torch.no_grad()
def tokens_per_second(backbones: Sequence[Backbone], held_out: Sequence[Scored]) -> list[float]:
    """Return the speed of each backbone's median forward pass over some texts."""
    texts = [tokens for _, tokens in held_out[:SPEED_BATCH_SIZE]]
    batch = collate(texts, pad_id(backbones[0].tokenizer), backbones[0].device)
    passes = [partial(_pass, backbone, batch) for backbone in backbones]
    return [int(batch.attention_mask.sum()) / seconds for seconds in median_in_turns(passes, SPEED_SECONDS)]


def median_in_turns(work: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Return the median time (s) of each piece of work, done again and again for so long.

    They take turns, so that what else the machine does slows all alike; the first ones warm up.
    """
    for each in work:
        each()
    end = time.monotonic() + seconds
    turns = [[_seconds(each) for each in work]]
    while time.monotonic() < end:
        turns.append([_seconds(each) for each in work])
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def answer_perplexity(backbone: Backbone, held_out: Sequence[Scored], on_share: Callable[[float], None]) -> float:
    """Return the perplexity of all answers together; `on_share` is told which share is scored."""
    score, num_scored = AnswerScore(), 0
    for indices in in_order_of_length([tokens for _, tokens in held_out], EVALUATION_BATCH_SIZE):
        examples, tokenized = zip(*(held_out[index] for index in indices), strict=True)
        score += total(evaluate(backbone, examples, tokenized).scores.values())
        num_scored += len(indices)
        on_share(num_scored / len(held_out))
    return score.perplexity


def _pass(backbone: Backbone, batch: Batch) -> None:
    float(forward(backbone, batch.input_ids, batch.attention_mask, num_logits=1).sum())  # waits for a GPU


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
