"""`fedmops lm-eval`: tasks of lm-evaluation-harness, asked of a run's backbone alone and with its mixture."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.atomic_file import replace_json
from common.saved_run import SavedRun
from simulations.simulate import spin_briefly

ALONE, WITH_MIXTURE = "backbone", "mixture"
Results = Mapping[str, Mapping[str, Any]]  # task or group -> figure, as the harness names it -> value


@dataclass(frozen=True)
class Options:
    """What is asked, and how."""

    tasks: tuple[str, ...]
    include_path: Path | None
    limit: int | None
    num_fewshot: int | None
    output: Path | None
    alone: bool
    batch_size: int
    device: str


def read_options(tasks: str, **rest: Any) -> Options:
    """Check the options, and that the harness is installed. Raises ValueError for what is wrong, in one line."""
    names = tuple(name.strip() for name in tasks.split(","))
    if not all(names):
        raise ValueError(f"tasks must be names with commas between them, got {tasks!r}")
    options = Options(names, **rest)
    if options.include_path is not None and not options.include_path.is_dir():
        raise ValueError(f"include-path {options.include_path} is no directory: give one with YAML files of tasks")
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(f"output {options.output} is in no directory: make {options.output.parent} first")
    if find_spec("lm_eval") is None:
        raise ValueError("lm-eval needs lm-evaluation-harness: pip install 'fedmops[lm-eval]'")
    return options


def evaluate_run(run: SavedRun, options: Options, console: Console, errors: Console) -> None:
    """Ask the backbone alone and, unless that is all, with the mixture; print a table, and write JSON if wanted."""
    # It would start a process for each core, with torch in this one, to draw samples for standard errors.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    spin_briefly()
    with errors.status("loading lm-evaluation-harness and the tasks' data"):
        from simulations.harness_model import HarnessModel, evaluate, load_tasks

        include = None if options.include_path is None else str(options.include_path)
        manager = load_tasks(options.tasks, include)
    with errors.status("loading the model"):
        from common.backbone import load_backbone
        from common.injection import PromptedBackbone
        from common.mixture import Mixture

        backbone = load_backbone(run.backbone, run.quantization, options.device)
    asked = options.tasks, manager, options.limit, options.num_fewshot
    results: dict[str, Results] = {ALONE: evaluate(HarnessModel(backbone, options.batch_size), *asked)}
    if not options.alone:
        mixture = Mixture(run.mixture.spec)
        mixture.load_arrays(run.mixture.arrays)
        with PromptedBackbone(backbone, mixture.to(backbone.device)) as prompted:
            results[WITH_MIXTURE] = evaluate(HarnessModel(prompted, options.batch_size), *asked)
    if options.output is not None:
        replace_json(options.output, report(run, options, results))
    console.print(results_table(results))


def report(run: SavedRun, options: Options, results: Mapping[str, Results]) -> dict[str, Any]:
    """Return all that is to be written: what was asked of what, and the figures as the harness names them."""
    return {
        "run": run.directory.resolve().name,
        "backbone": run.backbone,
        "quantization": run.quantization,
        "tasks": list(options.tasks),
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
        "results": results,
    }


def results_table(results: Mapping[str, Results]) -> Table:
    """Set each figure of each task with the mixture beside the backbone's, with standard errors where there are."""
    table = Table(title="lm-evaluation-harness")
    table.add_column("task")
    table.add_column("figure")
    for name in [*results, "change"] if len(results) > 1 else results:
        table.add_column(name, justify="right")
    for task, figures in results[ALONE].items():
        for key, value in figures.items():
            name, _, name_of_filter = key.partition(",")
            if not isinstance(value, int | float) or not name_of_filter or name.endswith("_stderr"):
                continue
            shown = name if name_of_filter == "none" else f"{name} ({name_of_filter})"
            cells = [_figure(each[task], name, name_of_filter) for each in results.values()]
            if len(results) > 1:
                cells.append(f"{results[WITH_MIXTURE][task][key] - value:+.3f}")
            table.add_row(escape(task), escape(shown), *cells)
    return table


def _figure(figures: Mapping[str, Any], name: str, name_of_filter: str) -> str:
    error = figures.get(f"{name}_stderr,{name_of_filter}")
    spread = f" ± {error:.3f}" if isinstance(error, int | float) else ""
    return f"{figures[f'{name},{name_of_filter}']:.3f}{spread}"
