"""Comparisons that fake runs stand for, and reports as results.json holds them."""

from typing import Any

# The fakes' perplexity is temperature * 2 ** seed, so temperatures stand for methods.
SMALL = """
[shared]
train-examples = 4
eval-examples = 2
num-clients = 2
[search]
seeds = [0]
num-rounds = 3
[methods.mixture]
label = "the mixture"
kind = "mixture"
group = "federated"
settings = { temperature = 1.0 }
rates = [0.1, 0.2, 0.4]
[methods.one-group]
label = "one group"
kind = "prompt"
group = "federated"
equal-bytes = true
settings = { temperature = 2.0 }
rates = [0.1, 0.2, 0.4]
"""

FLAT = """
[methods.flat]
label = "learns nothing"
kind = "reference"
group = "federated"
"""


def client(number: int, backbone: float, perplexity: float | None, **more: Any) -> dict[str, Any]:
    """Return a client's row."""
    row = {"client": number, "tasks": ["add"], "num_examples": 10, "num_tokens": 1234, "backbone_perplexity": backbone}
    return row | ({} if perplexity is None else {"perplexity": perplexity}) | more


def run(seed: int, perplexity: float, clients: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a run's row: a round before the first, and two."""
    sent = [(0, 8.0, 500_000), (1, 4.0, 1_000_000), (2, perplexity, 2_000_000)]
    rounds = [{"round": r, "perplexity": p, "bytes": b, "seconds": float(r)} for r, p, b in sent]
    return {
        "seed": seed,
        "perplexity": perplexity,
        "backbone_perplexity": 8.0,
        "bytes_down_per_client_and_round": 3000.0,
        "bytes_up_per_client_and_round": 1500.0,
        "rounds": rounds,
        "clients": clients or [client(0, 8.0, perplexity), client(1, 8.0, perplexity)],
        "failed_clients": [],
    }


def method(label: str, kind: str, runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a method's row."""
    search = {"rates": [0.1, 0.2], "perplexity": [3.0, None], "chosen": 0.1, "at_edge": True}
    given = {"label": label, "kind": kind, "group": "federated", "equal_bytes": False, "local_of": None}
    given |= {"searched_as": None, "settings": {"num-experts": 8}, "source": None, "search": search}
    return given | {"learning_rate": 0.1, "at_edge": True, "num_parameters": 39_496, "runs": runs} | more


def report(**methods: dict[str, Any]) -> dict[str, Any]:
    """Return what results.json holds."""
    return {
        "command": "fedmops compare skills",
        "commit": "c0ffee",
        "versions": {},
        "machine": {"processor": "a processor", "num_cores": 2},
        "shared": {"num-rounds": 2},
        "seeds": [0, 1],
        "split": "test",
        "search": {"split": "validation", "seeds": [0], "num_rounds": None},
        "methods": methods,
        "failed": {},
    }
