"""What a round costs beyond the clients' work: the real server and inline engine, clients that answer at once.

    python -m benchmarks.round_overhead [--clients 10,100] [--rounds 3] [--wire-formats float32,int8] [--output DIR]

The mixture has the sizes of the built-in backbone's defaults. Messages cross the wire, updates are checked and merged,
all figures are written to disk. Takes about 3 ms a client and round, and next to no memory.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from benchmarks.report import publish
from common.config import Config, WireFormat, read_config
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import card
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.rounds import EvaluateReply, TrainReply, pack_evaluate_reply, pack_train_reply, read_instruction
from server.run_directory import ROUNDS, RunDirectory
from server.strategy import MixtureStrategy
from simulations.benchmark_pages import round_overhead as pages
from simulations.inline import InlineGrid
from simulations.settings import resolve

SPEC = MixtureSpec(16, 2, 64, 128, dict.fromkeys((3, 4, 5), (4, 32, 32)))
NUM_EXAMPLES = 10


def idle_client(wire_format: WireFormat) -> ClientApp:
    """Return an app that sends back what it is sent, or no change of it, and scores one task."""
    app = ClientApp()
    usage = np.full(SPEC.num_experts, NUM_EXAMPLES / SPEC.num_experts)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sent = read_instruction(message.content).arrays
        arrays: Arrays = {name: sent[name] for name in SPEC.trainable()}
        if wire_format == "int8":
            arrays = {name: np.zeros_like(array) for name, array in arrays.items()}
        reply = TrainReply(arrays, 1.0, NUM_EXAMPLES, usage, 0.0)
        return Message(pack_train_reply(reply, wire_format), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        reply = EvaluateReply({"a task": AnswerScore(1.0, 1, 1, 1)}, {"a task": usage / NUM_EXAMPLES})
        return Message(pack_evaluate_reply(reply), reply_to=message)

    return app


def seconds_of_rounds(num_clients: int, num_rounds: int, wire_format: WireFormat, directory: Path) -> list[float]:
    """Run rounds of training and evaluation; return what each took."""
    config: Config = read_config(resolve([f"num-clients={num_clients}"]))
    grid = InlineGrid(idle_client(wire_format), {}, num_clients)
    nodes = dict(enumerate(grid.get_node_ids()))
    strategy = MixtureStrategy(SPEC, card(SPEC, "skills", "", 0), nodes, 1.0, 0, 600.0, wire_format=wire_format)
    written = RunDirectory(directory, config)
    strategy.run(grid, initial_arrays(SPEC, np.random.default_rng(0)), num_rounds, written)
    written.close()
    return [json.loads(line)["seconds"] for line in (directory / ROUNDS).read_text().splitlines()]


def main() -> None:
    """Read the command line, run, print a table; write it and its JSON to a directory, if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wire-formats", default="float32,int8")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    measured: list[dict[str, Any]] = []
    for num_clients in map(int, arguments.clients.split(",")):
        for wire_format in arguments.wire_formats.split(","):
            with TemporaryDirectory() as directory:
                seconds = seconds_of_rounds(num_clients, arguments.rounds, wire_format, Path(directory))
            row = {"clients": num_clients, "wire_format": wire_format, "seconds": seconds, "median": median(seconds)}
            measured.append(row)
    publish("round_overhead", pages, "A round without work", {"rows": measured}, arguments.output)


if __name__ == "__main__":
    main()
