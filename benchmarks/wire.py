"""What a message weighs: a mixture in each wire format, against LoRA, for models of well-known shapes.

    python -m benchmarks.wire [--shapes smollm2-135m,llama-3.1-8b] [--output DIR]

No weights are made: it takes some seconds a shape, and next to no memory. Bytes are what Flower ships, with headers.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np

from benchmarks.report import publish
from common.config import WireFormat, read_config
from common.mixture_spec import num_parameters
from common.model_shapes import SHAPES, write_description
from common.wire.message_bytes import message_bytes
from common.wire.rounds import TrainReply, instruction, pack_train_reply
from simulations.benchmark_pages import wire as pages
from simulations.planning.shape import shape_of
from simulations.settings import resolve

METHODS = {
    "mixture": (),
    "mixture, prompts as states": ("prompt-form=hidden",),
    "LoRA, r = 8 on q and v": ("method=lora", "lora-rank=8"),
}


def weigh(source: str, words: tuple[str, ...], wire_format: WireFormat) -> tuple[int, int, int]:
    """Return the number of trained parameters, and the bytes of an instruction and of an update."""
    config = read_config(resolve([f"backbone={source}", "quantization=nf4", f"wire-format={wire_format}", *words]))
    spec = shape_of(config, ["a task"]).spec
    rng = np.random.default_rng(0)  # Flower ships arrays of equal values once
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in spec.all().items()}
    update = TrainReply({name: arrays[name] for name in spec.trainable()}, 0.0, 0, np.zeros(spec.num_experts), 0.0)
    down = message_bytes(instruction(1, arrays, spec.tasks, wire_format))
    return num_parameters(spec), down, message_bytes(pack_train_reply(update, wire_format))


def main() -> None:
    """Read the command line, weigh, print a table; write it and its JSON to a directory, if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    weighed: list[dict[str, Any]] = []
    for name in arguments.shapes.split(","):
        with TemporaryDirectory() as source:
            write_description(name, Path(source))
            for method, words in METHODS.items():
                for wire_format in get_args(WireFormat) if "mixture" in method else ("float32",):
                    parameters, down, up = weigh(source, words, wire_format)
                    row = {"backbone": name, "method": method, "wire_format": wire_format, "parameters": parameters}
                    weighed.append(row | {"bytes_down": down, "bytes_up": up})
    publish("wire", pages, "A message of a round", {"rows": weighed}, arguments.output)


if __name__ == "__main__":
    main()
