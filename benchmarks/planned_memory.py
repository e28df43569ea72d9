"""What `fedmops plan` says of a client's memory, held against what a client is then measured to take.

    python -m benchmarks.planned_memory [SHAPE ...] [--quantizations none,nf4] [--lengths 256+32] [--batch-size 4]

SHAPE is a name of benchmarks.model_shapes, which is written to a temporary directory with random weights (2 bytes a
parameter on disk), or a backbone's name. On a CPU the measured peak is that of torch's profiler, on CUDA that of
torch's allocator. A shape of 0.5 B parameters takes about a minute of two cores.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.model_shapes import shapes, write
from common.backbone import Backbone, load_backbone
from common.config import Config, read_config
from simulations.compression.price import resident_bytes
from simulations.plan import read_lengths
from simulations.plan_table import size
from simulations.planning.client_data import Texts
from simulations.planning.memory import evaluation_pass, plan_memory, training_steps
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


def main() -> None:
    """Read the command line, plan and measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["skills"])
    parser.add_argument("--quantizations", default="none,nf4")
    parser.add_argument("--lengths", default="256+32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    lengths = read_lengths(arguments.lengths)
    assert lengths is not None
    texts = Texts(lengths.text, lengths.answer, arguments.batch_size, arguments.batch_size)
    table = Table(title=f"Planned / measured, {texts.num_trained} texts of {texts.longest} tokens, {arguments.device}")
    for name in ("backbone", "compression", "weights", "training", "evaluation", "at once"):
        table.add_column(name, justify="left" if name in ("backbone", "compression") else "right")
    rows = []
    for shape in arguments.shapes:
        with TemporaryDirectory() if shape in shapes() else nullcontext(shape) as source:
            if source != shape:
                write(shape, Path(source))
            for quantization in arguments.quantizations.split(","):
                words = [f"backbone={source}", f"quantization={quantization}", f"device={arguments.device}"]
                config = read_config(resolve([*words, f"batch-size={arguments.batch_size}"]))
                planned = plan_memory(config, texts, TASKS)
                loaded = load_backbone.__wrapped__(source, quantization, config.device)
                weights, training, evaluation = measured(loaded, config, texts)
                del loaded
                pairs = [
                    (planned.weights, weights),
                    (planned.trained + planned.training, training),
                    (planned.evaluation, evaluation),
                    (planned.peak, weights + max(training, evaluation)),
                ]
                shown = [f"{size(ours)} / {size(theirs)} = {ours / theirs:.2f}" for ours, theirs in pairs]
                table.add_row(shape, quantization, *shown)
                rows.append({"backbone": shape, "quantization": quantization, "planned": asdict(planned)})
                rows[-1]["measured"] = {"weights": weights, "training": training, "evaluation": evaluation}
    Console().print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
