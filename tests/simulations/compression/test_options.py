"""What `fedmops compress` refuses: in one line, with exit code 2, before torch is imported."""

import json
import subprocess
import sys

import pytest

from simulations.compression.options import Options
from simulations.compression.texts import choose_texts
from simulations.pretraining.options import Device

ROW = {"task": "shout", "input": "a", "output": "A"}


def options(output, **changes):
    usual = {"backbone": "skills", "method": "wanda", "sparsity": 0.5, "calibration": "skills", "seed": 0}
    return Options(**(usual | {"output": output, "num_calibration": None, "device": Device.CPU} | changes))


def write_rows(path, splits):
    rows = (ROW | {"input": f"word {number}", "split": split} for number, split in enumerate(splits))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "wnada"}, "unknown method 'wnada': did you mean wanda"),
        ({"method": "gptq"}, "unknown method 'gptq': expected one of magnitude, wanda, 2:4"),
        ({"sparsity": 0.0}, r"sparsity must be above 0 and below 1, .* got 0\.0"),
        ({"sparsity": 1.0}, "sparsity must be above 0 and below 1"),
        ({"sparsity": float("nan")}, "sparsity must be above 0 and below 1"),
        ({"method": "2:4", "sparsity": 0.6}, r"sparsity must be 0\.5 for method 2:4, got 0\.6"),
        ({"method": "magnitude", "num_calibration": 5}, "num-calibration has no effect on method magnitude"),
        ({"num_calibration": 0}, "num-calibration must be at least 1, got 0"),
        ({"calibration": "nowhere.jsonl"}, "calibration 'nowhere.jsonl' is neither 'skills' nor a file"),
        ({"backbone": "nowhere"}, "unknown backbone 'nowhere'"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        options(tmp_path / "new", **changes)


def test_an_output_that_holds_something_is_refused_and_an_empty_one_is_not(tmp_path):
    options(tmp_path)
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="is not an empty directory: pass another"):
            options(output)


def test_calibration_comes_from_training_rows_and_the_measure_from_validation_rows(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["train"] * 30 + ["validation"] * 5 + ["test"] * 5)
    texts = choose_texts(options(tmp_path / "new", calibration=path, num_calibration=20))
    assert [len(texts.calibration), len(texts.held_out)] == [20, 5]
    assert {example.split for example in texts.calibration} == {"train"}
    assert {example.split for example in texts.held_out} == {"validation"}
    assert texts == choose_texts(options(tmp_path / "new", calibration=path, num_calibration=20))
    other = choose_texts(options(tmp_path / "new", calibration=path, num_calibration=20, seed=1))
    assert set(other.calibration) != set(texts.calibration)


def test_the_built_in_tasks_are_all_looked_at(tmp_path):
    texts = choose_texts(options(tmp_path / "new"))
    assert len(texts.calibration) == 128 and len({example.task for example in texts.calibration}) == 20
    assert len(texts.held_out) == 800 and {example.split for example in texts.held_out} == {"validation"}
    assert not choose_texts(options(tmp_path / "new", method="magnitude")).calibration


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([], "has no examples of the splits train, validation"),
        (["validation"], "has no rows of the split train: add some"),
        (["train"], "has no rows of the split validation, by which perplexity is measured: name some"),
    ],
)
def test_a_calibration_file_without_what_is_needed_is_refused(tmp_path, splits, message):
    path = write_rows(tmp_path / "rows.jsonl", splits)
    with pytest.raises(ValueError, match=message):
        choose_texts(options(tmp_path / "new", calibration=path))


def test_the_command_line_tells_it_in_one_line_before_torch_is_imported(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for words in (["--method", "gptq"], ["--method", "wanda", "--calibration", "empty.jsonl"]):
        code = f"""
import sys
from simulations.cli import main
sys.argv = ["fedmops", "compress", "skills", "new", *{words}]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]
