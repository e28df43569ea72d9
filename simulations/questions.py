"""What `fedmops generate` asks: one instruction, or the rows of a file. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.formats import read_objects
from common.data.rows import prompt_fields
from common.example import Example
from common.near_names import did_you_mean
from common.saved_run import SavedRun

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked, of which task ("" where none is named)."""

    prompt: str
    task: str = ""


def one_question(run: SavedRun, instruction: str, text: str, task: str) -> Question:
    """Ask one thing. Raises ValueError for a task that the mixture does not know, or that has no effect on it."""
    spec = run.mixture.spec
    if task and not spec.has_task_gate:
        how = "goes by the input alone" if spec.has_gate else "has one expert and no gate"
        raise ValueError(f"task has no effect: the mixture in {run.directory} {how}: leave it out")
    instruction, text = prompt_fields({"instruction": instruction, "input": text}, "the question")
    return _question(run, instruction, text, task, "task")


def read_questions(run: SavedRun, path: Path) -> list[tuple[Row, Question]]:
    """Read the rows of a JSONL file, gzipped or not, with what each asks: `instruction`, `input` and perhaps `task`.

    A task counts only where the gate goes by tasks: data files name one in every row. Raises ValueError, with the line,
    for a row that asks nothing or names a task that the mixture does not know.
    """
    if not path.is_file():
        raise ValueError(f"batch {path} is no file: give a JSONL file with the fields 'instruction' and 'input'")
    found = []
    for where, row in read_objects(path):
        instruction, text = prompt_fields(row, where)
        task = (row.get("task") or "") if run.mixture.spec.has_task_gate else ""
        found.append((row, _question(run, instruction, text, task, f"{where}: task")))
    if not found:
        raise ValueError(f"batch {path} has no rows: write one JSON object a line")
    return found


def _question(run: SavedRun, instruction: str, text: str, task: Any, what: str) -> Question:
    known = run.mixture.spec.tasks
    if task and task not in known:
        hint = did_you_mean(str(task), known, otherwise=f"expected one of {', '.join(known)}, or none")
        raise ValueError(f"{what} {task!r} is unknown to the mixture: {hint}")
    return Question(Example("test", task, "", "", instruction, text, "").prompt, task)
