"""What each way to compress a backbone costs: bytes on disk and in memory, speed, perplexity."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from client.trainer import settings_of, train
from common.atomic_file import replace_file, replace_json
from common.backbone import Backbone, load_backbone
from common.batches import TokenizedExample
from common.config import read_config
from common.decoder import injection_layer, probe_kv_shapes
from common.example import Example
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import initial_arrays
from server.run_directory import versions
from simulations.compression.compressions_table import DOCUMENT, JSON, document, table
from simulations.compression.price import (
    answer_perplexity,
    disk_bytes,
    median_in_turns,
    resident_bytes,
    tokens_per_second,
)
from simulations.compression.tokenized import fitting
from simulations.grid import portable
from simulations.pretraining.progress import ProgressReport
from simulations.provenance import described
from simulations.settings import resolve

UNCOMPRESSED = "none"
STEP_SECONDS = 4.0

Row = dict[str, Any]


def measure_compressions(
    backbones: Sequence[str],
    quantizations: Sequence[str],
    examples: Sequence[Example],
    device: str,
    output: Path,
    console: Console,
) -> None:
    """Measure the first backbone under each quantization, and the others, its pruned copies, as they are.

    All are held against the first one uncompressed, which stays in memory and is timed in turns with each. One that
    cannot be loaded, or passes wrong gradients, has a row that says so.
    """
    with ProgressReport() as report:
        reference = load_backbone(backbones[0], UNCOMPRESSED, device)
        held_out = fitting(examples, reference)
        pairs = [(backbones[0], name) for name in quantizations] + [(name, UNCOMPRESSED) for name in backbones[1:]]
        tokenized = [tokens for _, tokens in held_out]
        resident = resident_bytes(reference.model)
        base = answer_perplexity(reference, held_out, _step(report, 0, len(pairs) + 1, "scoring the backbone"))
        rows: list[Row] = []
        for number, (name, quantization) in enumerate(pairs, start=1):
            show = _step(report, number, len(pairs) + 1, f"{portable(name)}, {quantization}")
            row: Row = {"backbone": portable(name), "quantization": quantization}
            try:
                compressed = load_backbone.__wrapped__(name, quantization, device)
            except ValueError as error:
                rows.append(row | {"refused": portable(str(error))})
                continue
            speeds = tokens_per_second((reference, compressed), held_out)
            steps = median_in_turns([_local_step(each, tokenized) for each in (reference, compressed)], STEP_SECONDS)
            perplexity = answer_perplexity(compressed, held_out, show)
            rows.append(
                row
                | {
                    "disk_bytes": disk_bytes(compressed),
                    "resident_bytes": (held := resident_bytes(compressed.model)),
                    "resident_ratio": held / resident,
                    "tokens_per_second": speeds[1],
                    "speed_ratio": speeds[1] / speeds[0],
                    "step_seconds": steps[1],
                    "step_ratio": steps[1] / steps[0],
                    "perplexity": perplexity,
                    "perplexity_ratio": perplexity / base,
                }
            )
    words = [*backbones, "--quantizations", ",".join(quantizations), "--output", str(output)]
    found = {
        "command": shlex.join(["fedmops", "compressions", *(portable(word) for word in words)]),
        **described([versions()]),
        "num_answers": len(held_out),
        "device": str(reference.device),
        "compute_dtype": str(reference.model.dtype).removeprefix("torch."),
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    replace_json(output / JSON, found)
    replace_file(output / DOCUMENT, document(found).encode())
    console.print(f"\n{table(found)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {output / JSON} and {output / DOCUMENT}", soft_wrap=True)


def _local_step(backbone: Backbone, tokenized: Sequence[TokenizedExample]) -> Callable[[], Any]:
    """Return a local step of the default mixture on a backbone, which stays plain between steps."""
    config = read_config(resolve([]))
    shapes = probe_kv_shapes(backbone, injection_layer(backbone, config.injection_layer))
    spec = config.mixture_spec(backbone.hidden_size, shapes, (), backbone.hidden_size)
    mixture = Mixture(spec).to(backbone.device)
    mixture.load_arrays(initial_arrays(spec, np.random.default_rng(0)))
    settings = settings_of(config, num_steps=1)

    def step() -> None:
        with PromptedBackbone(backbone, mixture) as prompted:
            train(prompted, tokenized[: config.batch_size], settings, np.random.default_rng(0))

    return step


def _step(report: ProgressReport, number: int, count: int, line: str) -> Callable[[float], None]:
    report.update(number / count, line)
    return lambda share: report.update((number + share) / count, line)
