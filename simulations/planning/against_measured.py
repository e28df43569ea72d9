"""What `fedmops plan` says of a client's memory, held against what a client is then measured to take.

    python -m simulations.planning.against_measured [SHAPE ...] [--quantizations none,nf4] [--lengths 256+32]
        [--batch-size 4] [--output DIR]

SHAPE is a name of common.model_shapes, which is written to a temporary directory with random weights (2 bytes a
parameter on disk), or a backbone's name. On a CPU the measured peak is that of torch's profiler, on CUDA that of
torch's allocator. A shape of 0.5 B parameters takes about a minute of two cores.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common.atomic_file import replace_file, replace_json
from common.backbone import Backbone, load_backbone, resolve_device
from common.config import Config, read_config
from common.model_shapes import SHAPES, write_shape
from server.run_directory import versions
from simulations.compression.price import resident_bytes
from simulations.grid import portable
from simulations.markdown import table
from simulations.plan import read_lengths
from simulations.plan_table import size
from simulations.planning.client_data import Texts
from simulations.planning.memory import evaluation_pass, plan_memory, training_steps
from simulations.provenance import described, head
from simulations.settings import resolve

TASKS = ("a", "b")


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Return the most that the tensors which work makes take at once."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    found = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measured(backbone: Backbone, config: Config, texts: Texts) -> tuple[int, int, int]:
    """Return the bytes of a loaded backbone's weights, of a client's training beside them, and of its evaluation."""

    def train() -> None:
        for _ in training_steps(backbone, config, texts, TASKS):
            pass

    def evaluate() -> None:
        evaluation_pass(backbone, config, texts, TASKS)

    evaluate()  # what is made once and kept, such as a table of positions, is no step's
    return (
        resident_bytes(backbone.model),
        peak_bytes(train, backbone.device),
        peak_bytes(evaluate, backbone.device),
    )


def compare(name: str, source: str, words: list[str], texts: Texts) -> dict[str, Any]:
    """Plan and measure a backbone in one compression; return both, in bytes."""
    config = read_config(resolve([f"backbone={source}", *words, f"batch-size={texts.num_trained}"]))
    planned = plan_memory(config, texts, TASKS)
    backbone = load_backbone.__wrapped__(source, config.quantization, config.device)
    weights, training, evaluation = measured(backbone, config, texts)
    return {
        "backbone": name,
        "quantization": config.quantization,
        "weights": [planned.weights, weights],
        "training": [planned.trained + planned.training, training],
        "evaluation": [planned.evaluation, evaluation],
        "at once": [planned.peak, weights + max(training, evaluation)],
    }


def document(report: dict[str, Any]) -> str:
    """Write the measurements: planned / measured, and the ratio."""
    parts = ("weights", "training", "evaluation", "at once")
    rows = [
        [row["backbone"], row["quantization"], *(f"{size(p)} / {size(m)}, {p / m:.2f}" for p, m in map(row.get, parts))]
        for row in report["rows"]
    ]
    texts = f"A step and a pass of {report['batch_size']} texts of {report['lengths']} tokens (text+answer), a mixture."
    return "\n\n".join(
        [
            *head("Planned memory against measured memory", report, f"Device {report['device']}. {texts}"),
            table(["backbone", "quantization", *parts], rows),
        ]
    )


def main() -> None:
    """Read the command line, plan and measure, print a table; write it and its JSON to a directory, if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["skills"])
    parser.add_argument("--quantizations", default="none,nf4")
    parser.add_argument("--lengths", default="256+32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lengths = read_lengths(arguments.lengths)
    assert lengths is not None
    texts = Texts(lengths.text, lengths.answer, arguments.batch_size, arguments.batch_size)
    rows = []
    for name in arguments.shapes:
        with TemporaryDirectory() if name in SHAPES else nullcontext(name) as source:
            if source != name:
                write_shape(name, Path(source))
            for quantization in arguments.quantizations.split(","):
                words = [f"quantization={quantization}", f"device={arguments.device}"]
                rows.append(compare(name, source, words, texts))
    report = {
        "command": shlex.join(["python", "-m", "simulations.planning.against_measured", *map(portable, sys.argv[1:])]),
        **described([versions()]),
        "device": str(resolve_device(arguments.device)),
        "lengths": arguments.lengths,
        "batch_size": arguments.batch_size,
        "rows": rows,
    }
    print(document(report))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        replace_json(arguments.output / "planned-memory.json", report)
        replace_file(arguments.output / "planned-memory.md", document(report).encode())


if __name__ == "__main__":
    main()
