"""Stands for `fedmops simulate`: leaves the files of a run of two clients and two rounds without running it.

    python fake_run.py DIRECTORY SETTINGS CODE

Before the result is written it executes CODE. The perplexity is temperature * 2 ** seed.
"""

import json
import sys
from pathlib import Path

CARD = "adapter_config.json"

directory, settings, code = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
perplexity = settings["temperature"] * 2 ** settings["seed"]
traffic = {"bytes_down": 4000, "bytes_up": 2000, "seconds": 1.5}
gate = {
    "gate_entropy": 0.5,
    "expert_use": [0.5, 0.5],
    "smallest_expert_use": 0.125,
    "task_expert_information": 1.25,
}
rounds = [
    {"round": 0, "perplexity": 8.0, "bytes_down": 7, "bytes_up": 70_000, "failed": {}, "seconds": 2.0},
    {"round": 1, "loss": 0.75, "perplexity": 3.0, "gate_entropy": 1.5, "failed": {}, **traffic},
    {
        "round": 2,
        "loss": 0.25,
        "perplexity": perplexity,
        "failed": {"train": {}},
        **(gate if settings["num-experts"] > 1 else {}),
        **traffic,
    },
]


def write(name: str, content: object) -> None:
    """Write a file whole, as a run does: another process may look for it at any time."""
    (directory / f".{name}").write_text(json.dumps(content))
    (directory / f".{name}").rename(directory / name)


def write_rounds() -> None:
    (directory / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))


def clients() -> list[dict[str, object]]:
    """Return the rows of two clients, and of one that did not reply at the end."""
    sizes = {"num_training_examples": 40, "num_examples": 10, "num_tokens": 25}
    return [
        {"client": 0, "tasks": ["add"], **sizes, "backbone_perplexity": 16.0, "perplexity": perplexity / 2},
        {"client": 1, "tasks": ["age"], **sizes, "backbone_perplexity": 4.0, "perplexity": perplexity * 2},
        {"client": 2, "tasks": ["age"], **sizes, "backbone_perplexity": 4.0},
    ]


directory.mkdir(parents=True, exist_ok=True)
write("config.json", settings)
write("versions.json", {"commit": "c0ffee", "torch": "2.0"})
sizes = {"num_experts": settings["num-experts"], "tokens_per_expert": 3, "gate_hidden_size": 4, "hidden_size": 5}
kinds = {"form": "kv", "positions": "all", "shared_expert": False, "gate": "input", "task_embedding_size": 16}
rest = {"peft_type": "MIXTURE_OF_PROMPTS", "temperature": 1.0, "top_k": 0, "tasks": [], "learned_task_weights": False}
write(CARD, sizes | kinds | rest | {"kv_shapes": {"0": [1, 2, 2]}})
write_rounds()
result = {"backbone_perplexity": 8.0, "num_parameters": 160}
exec(code)
task = {"task": settings["tasks"], "num_examples": 10, "backbone_perplexity": 8.0, "perplexity": perplexity}
write("result.json", {"clients": clients(), "perplexity": perplexity, "tasks": [task]} | result)
