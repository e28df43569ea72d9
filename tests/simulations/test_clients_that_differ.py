"""Clients with data, device and compression of their own share one mixture; other weights are refused by name."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from client.app import app as client_app
from client.evaluator import evaluate
from client.partition_data import load_partition_data
from common.backbone import load_backbone
from common.config import read_config
from common.own_settings import own_config
from common.perplexity import total
from server.app import app as server_app
from simulations.inline import run_inline
from simulations.report import result_table

RunConfig = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(run_config: RunConfig, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Return what runs with a file of clients and gives the result."""

    def start(text: str, **changes: Any) -> dict[str, Any]:
        (tmp_path / "clients.toml").write_text(text)
        settings = run_config(clients=str(tmp_path / "clients.toml"), **changes)
        run_inline(server_app, client_app, settings, settings["num-clients"])
        result: dict[str, Any] = json.loads((tmp_path / "run" / "result.json").read_text())
        return result

    return start


def test_three_compressions_share_one_mixture(run: Any, run_config: RunConfig, tmp_path: Path) -> None:
    result = run('[1]\nquantization = "int8"\n[2]\nquantization = "nf4"\nbatch-size = 2')
    assert [row["quantization"] for row in result["clients"]] == ["none", "int8", "nf4"]
    settings = run_config(clients=str(tmp_path / "clients.toml"))
    seen = []
    for row in result["clients"]:
        config = own_config(settings, {"partition-id": row["client"]})
        backbone = load_backbone(config.backbone, row["quantization"], "cpu")
        data = load_partition_data(read_config(settings | {"clients": ""}), row["client"], backbone).evaluation
        alone = total(evaluate(backbone, data.examples, data.tokenized).scores.values()).perplexity
        assert row["backbone_perplexity"] == pytest.approx(alone, rel=1e-6)
        seen.append(backbone.model)
    assert len({id(model) for model in seen}) == 3
    written = StringIO()
    Console(file=written, width=120).print(result_table(result))
    assert "compression" in written.getvalue() and "int8" in written.getvalue()


def test_the_table_names_no_compression_where_all_have_the_same(run: Any) -> None:
    written = StringIO()
    Console(file=written, width=120).print(result_table(run("")))
    assert "compression" not in written.getvalue()


def test_a_client_with_data_of_its_own_owns_all_of_it(run: Any, tmp_path: Path) -> None:
    rows = [
        {"task": "shout", "instruction": "shout", "input": f"{n}", "output": "HEY", "split": split}
        for split in ("train", "test")
        for n in range(3 if split == "train" else 2)
    ]
    for row, n in zip(rows, range(len(rows)), strict=True):
        row["input"] = f"number {n}"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(f'[1]\ndata = "{tmp_path / "mine.jsonl"}"')
    own = result["clients"][1]
    assert (own["tasks"], own["num_training_examples"], own["num_examples"]) == (["shout"], 3, 2)
    assert all("shout" not in row["tasks"] for row in result["clients"] if row["client"] != 1)


def test_other_weights_are_left_out_by_name_whatever_the_compression(
    run: Any, tiny_backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: array * 1.5 for name, array in weights.items()}, other / "model.safetensors", {"format": "pt"})
    result = run(f'[1]\nbackbone = "{other}"\nquantization = "int8"\n[2]\nquantization = "int8"')
    assert [row["client"] for row in result["clients"]] == [0, 2]
    assert "client 1 is left out: its weights differ from most clients' (" in caplog.text
    assert "tokenizer differs" not in caplog.text


def test_another_tokenizer_is_left_out_by_name(
    run: Any, tiny_backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    result = run(f'[1]\nbackbone = "{other}"')
    assert [row["client"] for row in result["clients"]] == [0, 2]
    assert "client 1 is left out: its tokenizer differs from most clients' (" in caplog.text
    assert "weights differ" not in caplog.text
