"""lm-evaluation-harness on a run: its numbers are those of slow loops and of its own model; a gate reads contexts only.

Offline, with task files and data of our own.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, backbone_on_disk, byte_tokenizer, mixture_for, run_on_disk, tiny_backbone, tiny_llama

from common.backbone import load_backbone
from common.batches import TokenizedExample, collate
from common.injection import PromptedBackbone
from simulations import harness
from simulations.harness import read_options, results_table

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'fedmops[lm-eval]'")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from simulations import harness_model
from simulations.harness_model import HarnessModel, load_tasks

TASKS = Path(__file__).parent / "lm_eval_tasks"
QUESTIONS = [json.loads(line) for line in (TASKS / "questions.jsonl").read_text().splitlines()]
PAIRS = [(f"{row['question']}:", f" {choice}") for row in QUESTIONS for choice in row["choices"]]
# float32 sums of some twenty terms of size 1 to 10, padded otherwise.
FLOAT32 = {"rel": 1e-5, "abs": 1e-4}


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copy the task files to where their data's path can be written into them; keep what datasets writes there too.

    The harness reads thousands of its own files to find a task: once is enough.
    """
    directory = tmp_path_factory.mktemp("tasks")
    for file in TASKS.glob("*.yaml"):
        (directory / file.name).write_text(file.read_text().replace("DATA\n", f"{TASKS}/questions.jsonl\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        manager = harness_model.TaskManager(include_path=str(directory))
        patch.setattr(harness_model, "TaskManager", lambda include_path: manager)
        yield directory


@pytest.fixture
def prompted() -> Iterator[PromptedBackbone]:
    backbone = tiny_backbone()
    with PromptedBackbone(backbone, mixture_for(backbone)) as prompted:
        yield prompted


def asking(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("own", 0, 1))


def loglikelihoods(model: Any, pairs: list[tuple[str, str]] = PAIRS, batch_size: int = 4) -> list[tuple[float, bool]]:
    asked = [asking("loglikelihood", *pair) for pair in pairs]
    found: list[tuple[float, bool]] = HarnessModel(model, batch_size).loglikelihood(asked, disable_tqdm=True)
    return found


def token_ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text)["input_ids"]
    return found


def single(context: str, continuation: str) -> TokenizedExample:
    before, whole = token_ids(context), token_ids(context + continuation)
    return TokenizedExample(before, whole[len(before) :], [token in (0, 1, 2) for token in before])


# --- Log-likelihood ---


def test_those_of_the_backbone_equal_a_loop_in_float64() -> None:
    model = tiny_llama().double()
    for (context, continuation), (value, is_greedy) in zip(PAIRS, loglikelihoods(tiny_backbone()), strict=True):
        text = single(context, continuation)
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([text.prompt_ids + text.answer_ids])).logits[0], dim=-1)
        start = len(text.prompt_ids) - 1
        assert value == pytest.approx(sum(float(log_p[start + n, t]) for n, t in enumerate(text.answer_ids)), **FLOAT32)
        assert is_greedy == all(int(log_p[start + n].argmax()) == t for n, t in enumerate(text.answer_ids))


def test_those_of_the_backbone_are_the_harness_own() -> None:
    own = HFLM(pretrained=tiny_llama(), tokenizer=byte_tokenizer(), batch_size=1, add_bos_token=None)
    expected = own.loglikelihood([asking("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    assert len(byte_tokenizer()("a")["input_ids"]) == len(own.tok_encode("a"))
    for found, wanted in zip(loglikelihoods(tiny_backbone()), expected, strict=True):
        assert (found[0], found[1]) == (pytest.approx(wanted[0], **FLOAT32), wanted[1])


def test_those_with_a_mixture_equal_a_loop_and_are_others(prompted: PromptedBackbone) -> None:
    found = loglikelihoods(prompted)
    for (context, continuation), (value, _) in zip(PAIRS, found, strict=True):
        text = single(context, continuation)
        with torch.no_grad():
            log_p = torch.log_softmax(prompted.logits(collate([text], 2, CPU))[0][0].double(), dim=-1)
        assert value == pytest.approx(sum(float(log_p[n, t]) for n, t in enumerate(text.answer_ids)), **FLOAT32)
    prompted.remove()
    alone = loglikelihoods(prompted.backbone)
    assert min(abs(one[0] - other[0]) for one, other in zip(found, alone, strict=True)) > 0.01


def test_what_is_likeliest_at_every_token_is_greedy(prompted: PromptedBackbone) -> None:
    asked = []
    for row in QUESTIONS:
        before = token_ids(row["question"])
        answer: list[int] = []
        for _ in range(3):
            text = TokenizedExample(before, answer, [token in (0, 1, 2) for token in before])
            answer = [*answer, int(prompted.logits(collate([text], 2, CPU))[0][0, -1].argmax())]
        asked += [(("", ""), before, answer[:count]) for count in (1, 2, 3)]
    model = HarnessModel(prompted, 4)
    assert all(greedy for _, greedy in model._loglikelihood_tokens(asked))
    others = [(texts, before, [*answer[:-1], answer[-1] ^ 1]) for texts, before, answer in asked]
    assert not any(greedy for _, greedy in model._loglikelihood_tokens(others))


def test_the_gate_reads_the_context_and_never_the_continuation(
    prompted: PromptedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, torch.Tensor] = {}
    logits = prompted.logits

    def keep(batch: Any) -> Any:
        found = logits(batch)
        for row, length in enumerate(batch.input_mask.sum(dim=1).tolist()):
            first = batch.input_ids[row][batch.input_mask[row].bool()].tolist()
            assert first == token_ids("a question:")[-length:]
            seen[len(seen)] = found[1][row]
        return found

    monkeypatch.setattr(prompted, "logits", keep)
    loglikelihoods(
        prompted, [("a question:", " yes"), ("a question:", " something else, and long"), ("a question:", "")]
    )
    weights = torch.stack(list(seen.values()))
    assert len(weights) == 3
    # The same sums over the context's states, padded otherwise.
    torch.testing.assert_close(weights, weights[:1].expand_as(weights), rtol=1e-4, atol=1e-5)
    assert float(weights.exp().max()) < 0.999


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_order_and_batches_change_nothing(prompted: PromptedBackbone, batch_size: int) -> None:
    expected = loglikelihoods(prompted)
    found = loglikelihoods(prompted, PAIRS[::-1], batch_size)[::-1]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], **FLOAT32)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    beginnings, ends = ("x" * 9000, "z" * 500 + "x" * 9000), ("a question:", "b question:")
    first, other, another = loglikelihoods(
        tiny_backbone(),
        [(x + end, " yes") for x, end in zip((*beginnings, beginnings[0]), (ends[0], *ends), strict=True)],
    )
    assert first == other
    assert abs(first[0] - another[0]) > 0.01


def test_what_the_gate_cannot_read_is_refused_by_name(prompted: PromptedBackbone) -> None:
    with pytest.raises(ValueError, match="a request has no context, so the gate has nothing to read"):
        loglikelihoods(prompted, [("", "yes")])
    with pytest.raises(ValueError, match=r"task own measures the likelihood of whole texts \(loglikelihood_rolling\)"):
        HarnessModel(prompted, 4).loglikelihood_rolling([asking("loglikelihood_rolling", "text")])
    with pytest.raises(ValueError, match="a continuation has 300 tokens, the backbone holds 256: leave out its task"):
        loglikelihoods(prompted, [("a", "x" * 300)])
    prompted.remove()
    assert loglikelihoods(prompted.backbone, [("", "yes")])[0][0] < 0


def test_generated_texts_end_before_a_stop(prompted: PromptedBackbone) -> None:
    model = HarnessModel(prompted, 4)

    def answer(**ways: Any) -> str:
        (text,) = model.generate_until([asking("generate_until", "a question:", {"max_gen_toks": 8} | ways)])
        return str(text)

    whole = answer(until=[])
    assert answer(until=[whole[4], ""]) == whole[: whole.index(whole[4])]
    assert answer(until=whole[4]) == whole[: whole.index(whole[4])]
    with pytest.raises(ValueError, match="task own samples its answers: choose one that generates greedily"):
        answer(do_sample=True, temperature=1.0)


# --- The command ---


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    source = backbone_on_disk(tmp_path / "backbone")
    run_on_disk(tmp_path / "run", source)
    return tmp_path / "run"


def accuracy(model: Any, normalised: bool = False) -> float:
    right = 0
    for row in QUESTIONS:
        # As the harness splits it: white space at the context's end belongs to the continuation.
        values = [
            value for value, _ in loglikelihoods(model, [(f"{row['question']}\n", each) for each in row["choices"]])
        ]
        if normalised:
            values = [value / len(each) for value, each in zip(values, row["choices"], strict=True)]
        right += values.index(max(values)) == row["answer"]
    return right / len(QUESTIONS)


def test_a_run_is_asked_alone_and_with_its_mixture(
    saved_run: Path, task_files: Path, fedmops: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    words = ["--tasks", "own_choice,own_words", "--include-path", str(task_files), "--output", str(output)]
    assert fedmops("lm-eval", str(saved_run), *words, "--device", "cpu") == 0
    written = json.loads(output.read_text())
    assert (written["run"], written["tasks"], written["limit"]) == ("run", ["own_choice", "own_words"], None)
    backbone = load_backbone.__wrapped__(str(tmp_path / "backbone"), "none", "cpu")
    expected = {"backbone": backbone, "mixture": PromptedBackbone(backbone, mixture_for(backbone))}
    for column in ("mixture", "backbone"):
        found = written["results"][column]["own_choice"]
        assert found["acc,none"] == pytest.approx(accuracy(expected[column]))
        assert found["acc_norm,none"] == pytest.approx(accuracy(expected[column], normalised=True))
        assert found["acc_stderr,none"] > 0
        assert written["results"][column]["own_words"]["exact_match,none"] == 0.0
        if column == "mixture":
            expected[column].remove()
    shown = capsys.readouterr().out
    for said in ("own_choice", "acc_norm", "exact_match", "backbone", "mixture", "change"):
        assert said in shown


def test_the_backbone_alone_with_a_limit(
    saved_run: Path, task_files: Path, fedmops: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    words = ["--tasks", "own_choice", "--include-path", str(task_files), "--limit", "2", "--output", str(output)]
    assert fedmops("lm-eval", str(saved_run), *words, "--alone") == 0
    assert "mixture" not in capsys.readouterr().out
    results = json.loads(output.read_text())["results"]
    assert list(results) == ["backbone"] and results["backbone"]["own_choice"]["sample_len"] == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tasks", "own_choise"], "lm-evaluation-harness has no task 'own_choise': did you mean own_choice"),
        (["--tasks", "own_texts"], "task own_texts measures the likelihood of whole texts (loglikelihood_rolling)"),
        (["--tasks", "own_choice,"], "tasks must be names with commas between them, got 'own_choice,'"),
    ],
)
def test_a_wrong_task_is_told_in_one_line(
    saved_run: Path,
    task_files: Path,
    fedmops: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    assert fedmops("lm-eval", str(saved_run), *words, "--include-path", str(task_files)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert reason in line


def test_wrong_options_are_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest: dict[str, Any] = {
        "include_path": None,
        "limit": None,
        "num_fewshot": None,
        "output": None,
        "alone": False,
        "batch_size": 4,
        "device": "cpu",
    }
    assert read_options("a, b", **rest).tasks == ("a", "b")
    with pytest.raises(ValueError, match=r"include-path .*nowhere is no directory"):
        read_options("a", **rest | {"include_path": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match=r"output .* is in no directory: make .*nowhere first"):
        read_options("a", **rest | {"output": tmp_path / "nowhere" / "out.json"})
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fedmops\[lm-eval\]'"):
        read_options("a", **rest)


def test_the_table_has_a_row_a_figure() -> None:
    task = {"alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.0125, "em,strict": 1, "em_stderr,strict": "N/A"}
    after = task | {"acc,none": 0.5}
    table = results_table({"backbone": {"mmlu": task}, "mixture": {"mmlu": after}})
    assert [column.header for column in table.columns] == ["task", "figure", "backbone", "mixture", "change"]
    assert [[*column.cells] for column in table.columns] == [
        ["mmlu", "mmlu"],
        ["acc", "em (strict)"],
        ["0.250 ± 0.013", "1.000"],
        ["0.500 ± 0.013", "1.000"],
        ["+0.250", "+0.000"],
    ]
    assert [column.header for column in results_table({"backbone": {"mmlu": task}}).columns][2:] == ["backbone"]


def test_tasks_of_the_published_results_are_known(task_files: Path) -> None:
    """Their names alone: their data is not on this machine."""
    assert {"mmlu", "super-glue-lm-eval-v1"} <= set(harness_model.TaskManager(str(task_files)).all_tasks)
    with pytest.raises(ValueError, match="has no task 'mmluu': did you mean mmlu"):
        load_tasks(["mmluu"], str(task_files))
