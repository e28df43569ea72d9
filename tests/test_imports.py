"""Imports point down (benchmarks -> simulations -> deployment, server, client -> common); heavy libraries in places."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("common", "client", "server", "deployment", "simulations", "benchmarks")

# What the code of a directory may import of ours.
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "deployment": {"deployment", "client", "common"},
    "simulations": {"simulations", "deployment", "server", "client", "common"},
    "benchmarks": {"benchmarks", "simulations", "server", "client", "common"},
}

# Where a library may be imported: directories and files.
PLACES = {
    "transformers": [
        "common/architecture.py",
        "common/attention.py",
        "common/backbone.py",
        "common/decoder.py",
        "common/fingerprint.py",
        "common/generation.py",
        "common/past.py",
        "common/quantization.py",
        "common/tokenizer.py",
    ],
    "bitsandbytes": ["common/backbone.py"],
    "torchao": ["common/quantization.py"],
    "huggingface_hub": ["common/hub.py"],
    "peft": [
        "benchmarks",
        "simulations",
        "client/adapter.py",
        "common/load_run.py",
        "common/peft_config.py",
        "common/peft_mixture.py",
    ],
    "flwr": ["benchmarks", "server", "client", "simulations", "common/wire"],
    "flwr_datasets": ["common/partitioner.py"],
    "datasets": ["common/data/tables.py", "common/partition.py", "common/partitioner.py"],
    "matplotlib": [
        "simulations/clients_plot.py",
        "simulations/comparison_plot.py",
        "simulations/partitions_plot.py",
        "simulations/perplexity_png.py",
        "simulations/plot.py",
    ],
    "cryptography": ["deployment"],
    "rouge_score": ["client/measurer.py"],
    "lm_eval": ["simulations/harness_model.py"],
}


def files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for part in OURS for path in (ROOT / part).rglob("*.py"))


def imports_of(file: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import of a file, those within functions too."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def test_there_is_code_to_check() -> None:
    assert {file.split("/")[0] for file in files()} == set(OURS)


@pytest.mark.parametrize("file", files())
def test_imports_follow_the_rules(file: str) -> None:
    part = file.split("/")[0]
    wrong = []
    for line, name in imports_of(file):
        package = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"{file}:{line} imports {name!r} relatively: write its full name from the root")
        elif package in OURS and package not in MAY_IMPORT[part]:
            wrong.append(
                f"{file}:{line} imports {name}, but {part} may import {sorted(MAY_IMPORT[part])} only: "
                "move what both need to common"
            )
        elif package in PLACES and not any(file == place or file.startswith(f"{place}/") for place in PLACES[package]):
            wrong.append(
                f"{file}:{line} imports {package}, which belongs in {PLACES[package]}: "
                "put a plain function there and call that"
            )
        elif part == "server" and package in ("torch", "transformers", "bitsandbytes", "jaxtyping"):
            wrong.append(f"{file}:{line} imports {package}, but the server's image has none: use numpy")
    assert not wrong, "\n".join(wrong)


def test_client_package_imports_nothing() -> None:
    found = list(imports_of("client/__init__.py"))
    assert not found, f"client/__init__.py imports {found}: Flower's command line imports it, so leave it empty"


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a statement loads in a fresh process."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_nothing_is_said_when_the_client_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import client.answers, client.app"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "statement", ["import server.app", "import client.app", "import common.backbone_source, common.perplexity"]
)
def test_no_torch_is_loaded_by(statement: str) -> None:
    heavy = loaded_by(statement) & {"torch", "transformers", "bitsandbytes", "datasets"}
    assert not heavy, f"{statement!r} loads {sorted(heavy)}: move what needs it out of what the server imports"
