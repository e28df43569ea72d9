"""`fedmops generate`: ask a run's model, one question or a file of them."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from common.mixture_spec import MixtureSpec
from common.saved_run import SavedRun
from simulations.questions import Question, Row
from simulations.simulate import spin_briefly

BATCH_SIZE = 16
# Rows that are sorted by length together, so that little padding is computed and results still come soon.
WINDOW = 8 * BATCH_SIZE
BAR_WIDTH = 40


@dataclass(frozen=True)
class Ways:
    """How to generate: the most likely token, the best of some beams, or, above temperature 0, a sample."""

    max_new_tokens: int
    num_beams: int
    temperature: float
    seed: int
    device: str
    show_gate: bool


def check_ways(run: SavedRun, ways: Ways) -> None:
    """Raise ValueError for ways that contradict each other or have no effect."""
    if ways.num_beams > 1 and ways.temperature > 0:
        raise ValueError("num-beams looks for the most likely text and temperature samples: leave one of them out")
    if ways.show_gate and not run.mixture.spec.has_gate:
        raise ValueError(f"show-gate has nothing to show: the mixture in {run.directory} has one expert and no gate")


def answer_one(run: SavedRun, question: Question, ways: Ways, errors: Console) -> None:
    """Print an answer as it comes, and then, if wanted, the experts' weights."""
    answer = _answerer(run, ways, errors).stream(question.prompt, question.task)
    if ways.show_gate:
        print("\n" + gate_table(run.mixture.spec, answer.expert_weights))


def answer_all(
    run: SavedRun, questions: Sequence[tuple[Row, Question]], output: Path | None, ways: Ways, errors: Console
) -> None:
    """Write rows with their answers as `output`, in order, as they come; a row's own output becomes `reference`."""
    answerer = _answerer(run, ways, errors)
    # Standard output is not rich's: a bar on the terminal must not carry off what goes into a file or a pipe.
    progress = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=errors, redirect_stdout=False, transient=True
    )
    with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as file, progress:
        bar = progress.add_task("answers", total=len(questions))
        for start in range(0, len(questions), WINDOW):
            window = questions[start : start + WINDOW]
            prompts, tasks = ([getattr(asked, name) for _, asked in window] for name in ("prompt", "task"))
            answers = answerer.answers(prompts, tasks, BATCH_SIZE)
            for (row, _), answer in zip(window, _in_order(answers, progress, bar), strict=True):
                _write(file, row, answer.text, answer.expert_weights if ways.show_gate else None)


def gate_table(spec: MixtureSpec, weights: Sequence[float]) -> str:
    """Draw the experts' weights as bars."""
    lines = ["expert  weight"]
    for expert, weight in enumerate(weights):
        shared = spec.shared_expert and expert == spec.num_experts - 1
        bar = "always on" if shared else "█" * round(weight * BAR_WIDTH)
        lines.append(f"{expert:6d}  {weight:6.3f}  {bar}".rstrip())
    return "\n".join(lines)


def _answerer(run: SavedRun, ways: Ways, errors: Console) -> Any:
    spin_briefly()
    with errors.status("loading the model"):
        # torch and transformers take seconds to import: only once the input is known to be right.
        import torch

        from common.generation import Answerer
        from common.load_run import load_model_of

        torch.manual_seed(ways.seed)
        model, tokenizer = load_model_of(run, ways.device)
    return Answerer(model, tokenizer, ways.max_new_tokens, ways.num_beams, ways.temperature, run.chat_template)


def _in_order(answers: Iterator[tuple[int, Any]], progress: Progress, bar: Any) -> Iterator[Any]:
    """Yield answers by index as soon as those before them are there."""
    waiting: dict[int, Any] = {}
    following = 0
    for index, answer in answers:
        waiting[index] = answer
        progress.advance(bar)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _write(file: TextIO, row: Row, text: str, weights: Sequence[float] | None) -> None:
    written = {key: value for key, value in row.items() if key not in ("output", "gate")}
    if "output" in row:
        written["reference"] = row["output"]
    written["output"] = text
    if weights is not None:
        written["gate"] = [round(weight, 4) for weight in weights]
    file.write(json.dumps(written, ensure_ascii=False) + "\n")
    file.flush()
