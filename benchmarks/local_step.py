"""What a local training step costs: the mixture against peft's prompt tuning and LoRA, on the same batches.

    python -m benchmarks.local_step [--backbone skills] [--quantization none] [--seconds 20]

The methods take turns, a step each, so that a noisy machine is noisy for all; reported are medians, and ratios of
steps taken side by side. Takes --seconds and the loading of three backbones; memory is three backbones and one step.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table

from client.prefix_cache import PrefixCache
from client.trainer import TrainSettings, train
from common.backbone import Backbone, load_backbone
from common.batches import IGNORED, TokenizedExample, collate, pad_id, tokenize
from common.decoder import injection_layer, probe_kv_shapes
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec, num_parameters
from common.skills.suite import skill_examples

BATCH_SIZE, NUM_BATCHES = 16, 32
NUM_EXPERTS, TOKENS_PER_EXPERT, GATE_HIDDEN_SIZE = 16, 2, 64
PROMPT_TOKENS, LORA_RANK = 20, 8

Step = Callable[[Sequence[TokenizedExample]], None]


def mixture_step(backbone: Backbone) -> tuple[Step, int]:
    """Return a step of ours, and the number of trained parameters."""
    layer = injection_layer(backbone, -1)
    kv_shapes = probe_kv_shapes(backbone, layer)
    spec = MixtureSpec(NUM_EXPERTS, TOKENS_PER_EXPERT, GATE_HIDDEN_SIZE, backbone.hidden_size, kv_shapes)
    mixture = Mixture(spec).to(backbone.device)
    mixture.load_arrays(initial_arrays(spec, np.random.default_rng(0)))
    prompted = PromptedBackbone(backbone, mixture)
    settings = TrainSettings(1, BATCH_SIZE, learning_rate=0.01, gate_learning_rate=0.001, balance_weight=0.02)

    def step(examples: Sequence[TokenizedExample]) -> None:
        train(prompted, examples, settings, np.random.default_rng(0))

    return step, num_parameters(spec)


def from_states(step: Step, backbone: Backbone, examples: Sequence[TokenizedExample], directory: str) -> Step:
    """Return a step that begins with the states at the injection layer, as a run's steps do."""
    cache = PrefixCache(Path(directory), budget_bytes=2**32)
    kept = cache.with_states(backbone, injection_layer(backbone, -1), examples)
    of = {id(plain): with_states for plain, with_states in zip(examples, kept, strict=True)}
    return lambda batch: step([of[id(plain)] for plain in batch])


def peft_step(backbone: Backbone, config: Any) -> tuple[Step, int]:
    """Return a step of a peft method as its documentation does it, and the number of trained parameters."""
    model = get_peft_model(backbone.model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.001)
    padding = pad_id(backbone.tokenizer)

    def step(examples: Sequence[TokenizedExample]) -> None:
        batch = collate(examples, padding, backbone.device)
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels[:, -batch.labels.shape[1] :] = batch.labels
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, use_cache=False
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in parameters)


def measure(steps: dict[str, Step], batches: list[list[TokenizedExample]], seconds: float) -> dict[str, list[float]]:
    """Time the methods in turn, a step each on the same batch, until the time is up; the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    deadline = time.monotonic() + seconds
    turn = 0
    while turn < 2 or time.monotonic() < deadline:
        for name, step in steps.items():
            started = time.perf_counter()
            step(batches[turn % len(batches)])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
        turn += 1
    return times


def main() -> None:
    """Read the command line, measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="skills")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()

    def new_backbone() -> Backbone:
        load_backbone.cache_clear()  # peft changes the model that it is given
        return load_backbone(arguments.backbone, arguments.quantization, arguments.device)

    with TemporaryDirectory() as directory:
        backbone = new_backbone()
        examples = [tokenize(example, backbone.tokenizer, 512) for example in skill_examples("train", 32, seed=0)]
        order = np.random.default_rng(0).permutation(len(examples))
        batches = [
            [examples[index] for index in order[start::NUM_BATCHES]][:BATCH_SIZE] for start in range(NUM_BATCHES)
        ]
        prompt_tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT_TOKENS)
        lora = LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, target_modules=["q_proj", "v_proj"])
        step, num_trained = mixture_step(backbone)
        methods = {
            "mixture": (step, num_trained),
            "mixture, states of the lower layers kept": (from_states(step, backbone, examples, directory), num_trained),
            f"peft PromptTuning, {PROMPT_TOKENS} tokens": peft_step(new_backbone(), prompt_tuning),
            f"peft LoRA, r = {LORA_RANK}": peft_step(new_backbone(), lora),
        }
        times = measure({name: step for name, (step, _) in methods.items()}, batches, arguments.seconds)
        ours = times["mixture"]
    table = Table(
        title=f"A local step, batch {BATCH_SIZE}, backbone {arguments.backbone}, {arguments.quantization}, "
        f"{backbone.device}, {torch.get_num_threads()} threads"
    )
    for column in ("method", "parameters", "ms (median)", "time against ours", "quartiles of it"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, (_, parameters) in methods.items():
        ratios = [theirs / mine for theirs, mine in zip(times[name], ours, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        table.add_row(
            name,
            f"{parameters:,}",
            f"{median(times[name]) * 1000:.1f}",
            f"{median(ratios):.2f}x",
            f"{low:.2f} to {high:.2f}",
        )
    console = Console()
    console.print(table)
    print(
        json.dumps({name: {"median_seconds": median(values), "steps": len(values)} for name, values in times.items()})
    )


if __name__ == "__main__":
    main()
