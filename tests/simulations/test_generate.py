"""`fedmops generate`: the same text as the model gives, in the file's order, and one line where it cannot answer."""

import gzip
import json
import subprocess
import sys

import pytest
import torch
from tiny import backbone_on_disk, examples, mixture_for, run_on_disk

from common import backbone as backbone_module
from common.backbone import load_backbone
from common.config import QUANTIZATIONS
from common.load_run import load_run
from common.mixture_file import WEIGHTS
from common.saved_run import CONFIG
from simulations import cli, generate
from simulations.generate import gate_table

TASKS = ("count", "shout", "turn")
KINDS = {
    "input": {},
    "both": {"gate": "both", "tasks": TASKS},
    "shared": {"shared_expert": True, "num_experts": 4},
    "one": {"num_experts": 1},
}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """In bfloat16 rounding alone turns the most likely token of a random model into another."""
    monkeypatch.setattr(backbone_module, "compute_dtype", lambda *_: torch.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories by kind, all of one backbone."""
    root = tmp_path_factory.mktemp("runs")
    source = backbone_on_disk(root / "backbone")
    backbone = load_backbone.__wrapped__(source, "none", "cpu")
    for kind, changes in KINDS.items():
        run_on_disk(root / kind, source, mixture=mixture_for(backbone, **changes))
    return root


@pytest.fixture
def fedmops(monkeypatch, capsys):
    """Run the command line; return its exit code, what it printed, and its errors in one line."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fedmops", "generate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def answer(run, example, task="", **ways):
    """Return what the model says to one example alone, and the experts' weights."""
    model, tokenizer = load_run(run, device="cpu")
    inputs = tokenizer(example.prompt, return_tensors="pt")
    ways = {"do_sample": False, "max_new_tokens": 12} | ways
    output = model.generate(**inputs, tasks=[task], **ways)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True), model.expert_weights[0].tolist()


def rows_of(some, **more):
    return [
        {"id": index, "instruction": example.instruction, "input": example.input} | more
        for index, example in enumerate(some)
    ]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# --- One question ---


@pytest.mark.parametrize(
    ("kind", "task", "words", "ways"),
    [
        ("input", "", (), {}),
        ("both", "", (), {}),
        ("both", "turn", (), {}),
        ("one", "", (), {}),
        ("input", "", ("--num-beams", 3), {"num_beams": 3}),
    ],
)
def test_the_answer_is_the_model_s(runs, fedmops, kind, task, words, ways):
    example = examples(1)[0]
    expected, _ = answer(runs / kind, example, task, **ways)
    words = (*words, "--task", task) if task else words
    asked = (runs / kind, example.instruction, "--input", example.input, "--max-new-tokens", 12, "--device", "cpu")
    assert fedmops(*asked, *words) == (0, expected + "\n", "")


def test_a_run_with_a_chat_template_is_asked_in_it(tmp_path, fedmops):
    source = backbone_on_disk(tmp_path / "backbone")
    (tmp_path / "backbone" / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<bot>"
    )
    run_on_disk(tmp_path / "run", source)
    model, tokenizer = load_run(tmp_path / "run", device="cpu")
    answers = {}
    for chat in (True, False):
        config = json.loads((tmp_path / "run" / CONFIG).read_text()) | {"chat-template": chat}
        (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
        prompt = "<user>do\nit<bot>" if chat else "do\nit\n"
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=12)
        answers[chat] = tokenizer.decode(output[0, 1 + len(prompt) :], skip_special_tokens=True)
        words = (tmp_path / "run", "do", "--input", "it", "--max-new-tokens", 12, "--device", "cpu")
        assert fedmops(*words) == (0, answers[chat] + "\n", "")
    assert answers[True] != answers[False]


def test_the_gate_is_shown_as_bars(runs, fedmops):
    example = examples(1)[0]
    asked = (runs / "both", example.instruction, "--input", example.input, "--show-gate", "--max-new-tokens", 3)
    tables = []
    for task in ("count", "shout"):
        text, weights = answer(runs / "both", example, task, max_new_tokens=3)
        _, out, _ = fedmops(*asked, "--task", task)
        spec = mixture_for(load_backbone("skills", "none", "cpu"), 3, **KINDS["both"]).spec
        assert out == f"{text}\n\n{gate_table(spec, weights)}\n"
        tables.append(out)
    assert tables[0] != tables[1]
    spec = mixture_for(load_backbone("skills", "none", "cpu"), **KINDS["shared"]).spec
    assert gate_table(spec, [0.75, 0.25, 0.0, 1.0]).split("\n") == [
        "expert  weight",
        "     0   0.750  " + "█" * 30,
        "     1   0.250  " + "█" * 10,
        "     2   0.000",
        "     3   1.000  always on",
    ]


def test_a_seed_draws_the_same_sample(runs, fedmops):
    asked = (runs / "input", "say something", "--temperature", 1.5, "--max-new-tokens", 12)
    drawn = [fedmops(*asked, "--seed", seed)[1] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_prompt_that_is_too_long_loses_its_beginning_and_says_so(runs, fedmops, caplog):
    example = examples(1)[0]
    code, out, _ = fedmops(runs / "input", "x" * 300 + example.instruction, "--input", example.input)
    assert code == 0 and len(out) <= 3  # one token of up to two letters, and the line's end
    assert [record.getMessage() for record in caplog.records] == [
        f"a prompt of {301 + len(example.prompt)} tokens loses its beginning: the model holds 255"
    ]


# --- A file of them ---


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("kind", ["input", "both"])
def test_a_file_is_answered_in_its_order_as_each_row_alone(runs, fedmops, tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(generate, "BATCH_SIZE", 3)
    monkeypatch.setattr(generate, "WINDOW", 6)
    some = examples(10)
    rows = [row | {"task": example.task} for row, example in zip(rows_of(some), some, strict=True)]
    lengths = [len(example.prompt) for example in some]
    assert lengths != sorted(lengths)
    batch = write(tmp_path / name, rows)
    words = (runs / kind, "--batch", batch, "--max-new-tokens", 12, "--show-gate", "--device", "cpu")
    code, out, err = fedmops(*words)
    assert (code, err.strip()) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    for example, row, found in zip(some, rows, answers, strict=True):
        text, weights = answer(runs / kind, example, example.task)
        assert found == row | {"output": text, "gate": found["gate"]}
        assert found["gate"] == pytest.approx(weights, abs=1e-4)  # four digits
    assert fedmops(*words, "--output", tmp_path / "answers.jsonl")[:2] == (0, "")
    assert (tmp_path / "answers.jsonl").read_text() == out


def test_a_row_s_own_output_is_kept_as_reference(runs, fedmops, tmp_path):
    batch = write(tmp_path / "rows.jsonl", rows_of(examples(1), output="right", domain="letters"))
    _, out, _ = fedmops(runs / "input", "--batch", batch, "--max-new-tokens", 2)
    found = json.loads(out)
    assert (found["reference"], found["domain"]) == ("right", "letters")
    assert found["output"] != "right" and "gate" not in found


def test_answers_are_written_as_they_come(runs, tmp_path, monkeypatch, fedmops):
    """When the second batch begins, the first one's rows are in the file."""
    monkeypatch.setattr(generate, "BATCH_SIZE", 2)
    monkeypatch.setattr(generate, "WINDOW", 2)
    batch = write(tmp_path / "rows.jsonl", rows_of(examples(6)))
    loaded, calls, written = generate._answerer, [], []

    def interrupted(*arguments):
        answerer = loaded(*arguments)
        whole = answerer._generate

        def run(*given):
            calls.append(given)
            if len(calls) == 2:
                written.append((tmp_path / "out.jsonl").read_text())
                raise RuntimeError("stop")
            return whole(*given)

        answerer._generate = run
        return answerer

    monkeypatch.setattr(generate, "_answerer", interrupted)
    code, _, err = fedmops(runs / "input", "--batch", batch, "--output", tmp_path / "out.jsonl", "--max-new-tokens", 2)
    assert (code, err.strip()) == (1, "failed: stop")
    assert [json.loads(line)["id"] for line in written[0].splitlines()] == [0, 1]


def test_how_long_a_text_s_neighbour_is_changes_nothing(runs, fedmops, tmp_path):
    """A text near the last of 256 positions stops there; the one beside it goes on."""
    short, long = rows_of(examples(2))
    long["instruction"] = "y" * 235
    found = {}
    for name, rows in (("both", [short, long]), ("short", [short]), ("long", [long])):
        _, out, _ = fedmops(runs / "input", "--batch", write(tmp_path / name, rows), "--max-new-tokens", 30)
        found[name] = [json.loads(line)["output"] for line in out.splitlines()]
    assert found["both"] == found["short"] + found["long"]


# --- What cannot be asked ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("both", "x", "--task", "trun"), "task 'trun' is unknown to the mixture: did you mean turn?"),
        (
            ("both", "x", "--task", "fly"),
            "'fly' is unknown to the mixture: expected one of count, shout, turn, or none",
        ),
        (
            ("input", "x", "--task", "turn"),
            "task has no effect: the mixture in .* goes by the input alone: leave it out",
        ),
        (("one", "x", "--task", "turn"), "task has no effect: .* has one expert and no gate: leave it out"),
        (("one", "x", "--show-gate"), "show-gate has nothing to show: .* has one expert and no gate"),
        (("input",), "the question has neither 'instruction' nor 'input'"),
        (("input", "x", "--num-beams", 2, "--temperature", 1), "leave one of them out"),
        (("input", "x", "--output", "there"), "output has no effect on one question"),
        (("input", "x", "--batch", "there"), "leave out the instruction, input and task, or batch"),
        (("input", "--batch", "nowhere.jsonl"), "batch nowhere.jsonl is no file"),
        (("nowhere", "x"), "has no adapter_config.json: give the directory of a run that finished a round"),
        (("input", "x", "--quantization", "nf4"), "trained on a backbone with the fingerprint .* and quantization$"),
        (("input", "x", "--backbone", "skills"), "but backbone 'skills' with quantization none has"),
        (("input", "x", "--backbone", "no/such/place"), "unknown backbone 'no/such/place'"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_2(runs, fedmops, words, message):
    code, out, err = fedmops(runs / words[0], *words[1:])
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(err.strip())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "x"}\n{"input": 3}\n', "line 2 has 'input' 3: expected a text"),
        (
            '{"instruction": "x", "task": "counts"}\n',
            "line 1: task 'counts' is unknown to the mixture: did you mean count",
        ),
        ('{"instruction": "x", "task": 7}\n', "line 1: task 7 is unknown to the mixture"),
        ("[1]\n", "line 1 is not an object"),
        ("\n", "has no rows"),
    ],
)
def test_a_bad_row_is_named_before_anything_is_answered(runs, fedmops, tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    code, out, err = fedmops(runs / "both", "--batch", tmp_path / "rows.jsonl")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_the_batch_is_not_overwritten(runs, fedmops, tmp_path):
    batch = write(tmp_path / "rows.jsonl", rows_of(examples(1)))
    code, _, err = fedmops(runs / "input", "--batch", batch, "--output", batch)
    assert code == 2 and "is the batch itself: name another file" in err
    assert json.loads(batch.read_text())["id"] == 0


def test_a_damaged_run_is_refused_without_torch(runs, tmp_path):
    broken = tmp_path / "run"
    broken.mkdir()
    for path in (runs / "input").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: -40 if path.name == WEIGHTS else None])
    code = (
        "import sys; from simulations.cli import main\n"
        f"sys.argv = ['fedmops', 'generate', {str(broken)!r}, 'x']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (2, "False False")
    assert "is no saved mixture, or damaged" in done.stderr and done.stderr.count("\n") == 1


def test_any_backbone_is_taken_when_told_so(runs, fedmops):
    code, out, _ = fedmops(runs / "input", "x", "--quantization", "nf4", "--any-backbone", "--max-new-tokens", 2)
    assert code == 0 and out


def test_the_choices_of_quantization_are_the_settings_own():
    assert tuple(cli.Quantization) == QUANTIZATIONS
