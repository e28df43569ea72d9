"""What a local training step costs: the mixture against peft's methods, on the same batches of mixed lengths.

    python -m benchmarks.local_step [--backbone smollm2-135m] [--quantization none] [--dtype auto] [--device auto]
        [--batch-size 16] [--pass-tokens 4096] [--methods PromptTuning,LoRA] [--seconds 60] [--output DIR]

--backbone is a shape of common.model_shapes, with random weights, or a backbone's name. The methods take turns, a
step each on the same batch, so that a noisy machine is noisy for all; reported are ratios of steps taken side by side.
Memory is up to four backbones and one step, disk 2 bytes a parameter of a shape; time is --seconds and the loading.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.floor import matrix_rate, step_flops, synchronize
from benchmarks.peft_methods import CHANGE_THE_MODEL, Step, peft_step
from benchmarks.report import publish
from benchmarks.texts import MIXED_LENGTHS, batches_of, random_texts
from client.prefix_cache import PrefixCache
from client.task_weights import JointLoss
from client.trainer import TrainSettings, new_optimizer, train_step
from common.backbone import Backbone, load_backbone, resolve_device
from common.batches import TokenizedExample
from common.decoder import injection_layer, probe_kv_shapes
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec, Positions, num_parameters
from common.model_shapes import SHAPES, write_shape
from common.passes import batches_of_passes
from simulations.benchmark_pages import local_step as pages
from simulations.benchmark_pages.local_step import ANSWERS, ANSWERS_CACHED, CACHED, MIXTURES, OURS
from simulations.planning.against_measured import peak_bytes

NUM_EXPERTS, TOKENS_PER_EXPERT, GATE_HIDDEN_SIZE = 16, 2, 64
PEFT = "PromptTuning,PrefixTuning,MultitaskPromptTuning,LoRA,AdaptionPrompt,X-LoRA"
WARM_UP = 1  # turns that do not count


def mixture_step(backbone: Backbone, pass_tokens: int, positions: Positions) -> tuple[Step, int]:
    """Return the trainer's step of a mixture whose prompts these positions see; and the number of trained parameters.

    The backbone is plain again after each step, for the other methods.
    """
    layer = injection_layer(backbone, -1)
    kv_shapes = probe_kv_shapes(backbone, layer)
    sizes = (NUM_EXPERTS, TOKENS_PER_EXPERT, GATE_HIDDEN_SIZE, backbone.hidden_size)
    spec = MixtureSpec(*sizes, kv_shapes, positions=positions)
    mixture = Mixture(spec).to(backbone.device)
    mixture.load_arrays(initial_arrays(spec, np.random.default_rng(0)))
    settings = TrainSettings(1, 1, learning_rate=0.01, gate_learning_rate=0.001, balance_weight=0.02)
    optimizer = new_optimizer(mixture, settings)
    joint_loss = JointLoss(settings.task_weights, mixture, [""])

    def step(examples: Sequence[TokenizedExample]) -> None:
        batches = batches_of_passes(backbone, examples, pass_tokens)
        with PromptedBackbone(backbone, mixture) as prompted:
            train_step(prompted, batches, joint_loss, settings.balance_weight, optimizer)

    return step, num_parameters(spec)


def on_kept(step: Step, texts: Sequence[TokenizedExample], kept: Sequence[TokenizedExample]) -> Step:
    """Return a step that is given, for the texts of a batch, those with what is kept of them, as a run's steps are."""
    of = {id(plain): with_states for plain, with_states in zip(texts, kept, strict=True)}
    return lambda batch: step([of[id(plain)] for plain in batch])


def take_turns(
    steps: dict[str, Step], batches: Sequence[Sequence[TokenizedExample]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Time the methods in turn, a step each on the same batch, until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    deadline = time.monotonic() + seconds
    turn = 0
    while turn < WARM_UP + 2 or time.monotonic() < deadline:
        for name, step in steps.items():
            synchronize(device)
            started = time.perf_counter()
            step(batches[turn % len(batches)])
            synchronize(device)
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - started)
        turn += 1
    return times


def measure(source: str, arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Load the backbones, measure all methods; return figures by method."""

    def new_backbone() -> Backbone:
        return load_backbone.__wrapped__(source, arguments.quantization, arguments.device, arguments.dtype)

    backbone = new_backbone()
    texts = random_texts(backbone, MIXED_LENGTHS)
    batches = batches_of(texts, arguments.batch_size)
    ours, num_trained = mixture_step(backbone, arguments.pass_tokens, "all")
    answers, _ = mixture_step(backbone, arguments.pass_tokens, "answer")
    layer, cache = injection_layer(backbone, -1), PrefixCache(directory / "kept", budget_bytes=2**34)
    started = time.monotonic()
    with_states = cache.with_states(backbone, layer, texts)
    seconds_to_fill = time.monotonic() - started
    with_past = cache.with_past(backbone, probe_kv_shapes(backbone, layer), with_states)
    seconds_to_fill_past = time.monotonic() - started - seconds_to_fill
    steps = {
        OURS: ours,
        CACHED: on_kept(ours, texts, with_states),
        ANSWERS: answers,
        ANSWERS_CACHED: on_kept(answers, texts, with_past),
    }
    trained = dict.fromkeys(steps, num_trained)
    for method in filter(None, arguments.methods.split(",")):
        of_its_own = new_backbone() if method in CHANGE_THE_MODEL else backbone
        steps[method], trained[method] = peft_step(method, of_its_own, directory)
    times = take_turns(steps, batches, arguments.seconds, backbone.device)
    longest = max(batches, key=lambda batch: max(text.num_tokens for text in batch))
    peaks = {name: peak_bytes(lambda step=step: step(longest), backbone.device) for name, step in steps.items()}  # type: ignore[misc]
    tokens = [sum(text.num_tokens for text in batch) for batch in batches]
    rate = matrix_rate(backbone, int(median(tokens)))
    floors = {
        answers_alone: [step_flops(backbone, layer, batch, answers_alone) / rate for batch in batches]
        for answers_alone in (False, True)
    }
    turns = range(WARM_UP, WARM_UP + len(times[OURS]))
    return {
        "dtype": str(backbone.model.dtype).removeprefix("torch."),
        "tokens_per_step": float(np.mean(tokens)),
        "matrix_flops_per_second": rate,
        "seconds_to_fill_the_cache": seconds_to_fill,
        "seconds_to_fill_the_past": seconds_to_fill_past,
        "methods": {
            name: {
                "parameters": trained[name],
                "steps": len(times[name]),
                "tokens_per_second": sum(tokens[turn % len(batches)] for turn in turns) / sum(times[name]),
                "median_seconds": median(times[name]),
                "time_against": {ours: _ratios(times[name], times[ours]) for ours in MIXTURES},
                "part_of_floor": sum(floors[name in (ANSWERS, ANSWERS_CACHED)][turn % len(batches)] for turn in turns)
                / sum(times[name]),
                "peak_bytes": peaks[name],
            }
            for name in steps
        },
    }


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile of ratios of steps that were taken side by side."""
    return quantiles([their / our for their, our in zip(theirs, ours, strict=True)], n=4)


def main() -> None:
    """Read the command line, measure, print a table; write the figures to a file, if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pass-tokens", type=int, default=TrainSettings.pass_tokens)
    parser.add_argument("--methods", default=PEFT)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    name = arguments.backbone
    with TemporaryDirectory() as directory, TemporaryDirectory() if name in SHAPES else nullcontext(name) as source:
        if name in SHAPES:
            write_shape(name, Path(source), device)
        figures = {
            "backbone": name,
            "quantization": arguments.quantization,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads",
            "batch_size": arguments.batch_size,
            **measure(source, arguments, Path(directory)),
        }
    publish("local_step", pages, pages.title(figures), figures, arguments.output)


if __name__ == "__main__":
    main()
