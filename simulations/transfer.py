"""Prompt transfer gain: what each task gained, or lost, by sharing a mixture with the others.

The gain of task t is 1 - p_joint / p_alone, with p the perplexity of its answers: under the run's mixture, and under
one group of prompts that was trained on t alone, with as many parameters as the whole mixture, all clients' examples of
t, and an equal share of the updates that all clients made together. The prompt transfer gain is the mean over tasks; a
negative one is negative transfer. The word is dynamic prompt fusion's (arXiv 2509.18113), the formula ours.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.table import Table

from common.atomic_file import replace_json
from common.backbone_source import distribution_root
from common.config import Value, default_run_config
from common.mixture_file import read_mixture
from common.mixture_spec import MixtureSpec, num_parameters
from common.perplexity import geometric_mean
from common.saved_run import CONFIG
from server.run_directory import VERSIONS
from simulations.runs import Run, run_all, sole_use
from simulations.settings import GATE_KEYS
from simulations.simulate import read_result

TRANSFER = "transfer.json"


def tokens_of_equal_parameters(spec: MixtureSpec) -> int:
    """Return how many tokens one group of prompts has for as many parameters as a mixture, gate included."""
    token = replace(spec, num_experts=1, tokens_per_expert=1, shared_expert=False, learned_task_weights=False)
    return round(num_parameters(spec) / num_parameters(token))


def steps_of_equal_share(config: dict[str, Any], num_tasks: int) -> int:
    """Return a task's share of the updates that all clients of a run make in a round."""
    num_steps: float = max(1, round(config["client-fraction"] * config["num-clients"])) * config["num-local-steps"]
    return max(1, round(num_steps / num_tasks))


def alone_settings(config: dict[str, Value], task: str, num_tokens: int, num_steps: int) -> dict[str, Value]:
    """Return the settings of the run that trains a prompt on one task, from those of the joint run."""
    defaults = default_run_config(distribution_root())
    # Where nothing depends on a key its default stands, so that runs which differ there share the training.
    return (
        config
        | {key: defaults[key] for key in (*GATE_KEYS, "task-weight-learning-rate", "dirichlet-alpha")}
        | {
            "name": "alone",
            "tasks": task,
            "num-clients": 1,
            "client-fraction": 1.0,
            "centralised": False,
            "partition": "by-task",
            "num-local-steps": num_steps,
            "num-experts": 1,
            "tokens-per-expert": num_tokens,
            "shared-expert": False,
            "top-k": 0,
            "task-weights": "size",
            "prompt-init": "random",
            "aggregation": defaults["aggregation"],
            "num-personal-steps": 0,
            "run-directory": "",
        }
    )


def prompt_transfer_gain(
    run: Path,
    output: Path,
    num_processes: int,
    on_task: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Train a prompt on each task of a finished run alone; write and return the gain of every task, and the mean.

    The trainings lie in `output`, where those of an interrupted call, or of another run that differs in nothing that
    they depend on, are not done again. `on_task(done, count)` is called after each. Raises ValueError where the run is
    damaged, RuntimeError where it has no result or a training fails.
    """
    joint = read_result(run)
    saved = read_mixture(run)
    config = json.loads((run / CONFIG).read_text())
    rows = joint["tasks"]
    num_tokens, num_steps = tokens_of_equal_parameters(saved.spec), steps_of_equal_share(config, len(rows))
    with sole_use(output):
        runs = {
            row["task"]: _run_alone(output, alone_settings(config, row["task"], num_tokens, num_steps)) for row in rows
        }
        missing = [run for run in runs.values() if not run.is_done()]
        done = itertools.count(len(runs) - len(missing) + 1)

        def ended(single: Run, reason: str | None) -> None:
            if reason is not None:
                raise RuntimeError(f"a prompt could not be trained alone ({single.directory}): {reason}")
            on_task(next(done), len(runs))

        run_all(missing, num_processes, ended)
    gains = []
    for row in rows:
        (alone,) = read_result(runs[row["task"]].directory)["tasks"]
        assert alone["num_examples"] == row["num_examples"]
        gains.append(
            {
                "task": row["task"],
                "backbone_perplexity": row["backbone_perplexity"],
                "alone_perplexity": alone["perplexity"],
                "joint_perplexity": row["perplexity"],
                "gain": 1 - row["perplexity"] / alone["perplexity"],
            }
        )
    found = {
        "joint_to_alone": geometric_mean(row["joint_perplexity"] / row["alone_perplexity"] for row in gains),
        "prompt_transfer_gain": sum(row["gain"] for row in gains) / len(gains),
        "num_negative": sum(row["gain"] < 0 for row in gains),
        "tokens_alone": num_tokens,
        "steps_alone": num_steps * config["num-rounds"],
        "seed": config["seed"],
        "eval_split": config["eval-split"],
        "commit": json.loads((run / VERSIONS).read_text())["commit"],
        "tasks": gains,
    }
    replace_json(run / TRANSFER, found)
    return found


def _run_alone(output: Path, settings: dict[str, Value]) -> Run:
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    directory = output / f"{quote(str(settings['tasks']), safe=' ')}-{sha256(text.encode()).hexdigest()[:8]}"
    # A file, not words: a word for the gate would be refused as void for one expert.
    preset = output / f"{directory.name}.toml"
    preset.write_text(text)
    return Run((str(preset),), directory)


def transfer_table(found: dict[str, Any]) -> Table:
    """Show the gain of every task, the largest first."""
    table = Table(title="Perplexity of the answers, per task: a prompt of its own against the shared mixture")
    table.add_column("task")
    for name in ("backbone", "alone", "joint", "gain"):
        table.add_column(name, justify="right")
    for row in sorted(found["tasks"], key=lambda row: -row["gain"]):
        colour = "green" if row["gain"] >= 0 else "red"
        table.add_row(
            row["task"],
            *(f"{row[f'{name}_perplexity']:.2f}" for name in ("backbone", "alone", "joint")),
            f"[{colour}]{row['gain']:+.0%}[/{colour}]",
        )
    table.add_section()
    negative = f", {found['num_negative']} with negative transfer" if found["num_negative"] else ""
    table.add_row(f"{len(found['tasks'])} tasks{negative}", "", "", "", f"{found['prompt_transfer_gain']:+.0%}")
    return table
