"""Tables in documents are what their JSON gives: here, and wherever someone changes one without the other."""

import json
import shutil
from pathlib import Path

import pytest
from comparisons import method, report, run

from common.backbone_source import distribution_root
from simulations import document
from simulations.document import main, rebuild

GATES = "docs/results/gates"
SWEEP = {
    "command": "fedmops sweep",
    "commit": "c0ffee",
    "machine": {"processor": "a processor", "num_cores": 2},
    "split": "validation",
    "axes": {"gate": ["input"]},
    "runs": [{"settings": {"gate": "input"}, "seed": 0, "perplexity": 2.0, "backbone_perplexity": 4.0}],
}
COMPARED = report(a=method("ours", "mixture", [run(0, 2.0)]), b=method("p", "prompt", [run(0, 3.0)]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository of a sweep and a comparison whose documents have just been rebuilt."""
    (tmp_path / GATES).mkdir(parents=True)
    (tmp_path / GATES / "sweep.json").write_text(json.dumps(SWEEP))
    (tmp_path / GATES / "results.json").write_text(json.dumps(COMPARED))
    (tmp_path / "README.md").write_text(f"before\n<!-- from {GATES}/sweep.json: table -->\n<!-- end -->\nafter\n")
    blocks = [
        f"<!-- from {GATES}/results.json: {name} -->\n<!-- end -->\n" for name in ("federated", "summary", "search")
    ]
    (tmp_path / "docs" / "method.md").write_text("\n".join(blocks))
    rebuild(tmp_path, write=True)
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_all_documents_of_this_repository_are_what_their_json_gives() -> None:
    assert rebuild(distribution_root(), write=False) == []


def test_blocks_are_filled_and_nothing_else_changes(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert text.startswith(f"before\n<!-- from {GATES}/sweep.json: table -->\n| gate | perplexity |")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert "| input | 2.000 |" in text
    others = (root / "docs" / "method.md").read_text()
    for part in ("| ours | 0.1 (edge) | 2.000 |", "Group federated: *ours*", "| ours | federated | **3.000** (0.1) |"):
        assert others.count(part) == 1


def test_what_was_rebuilt_agrees(root: Path) -> None:
    assert rebuild(root, write=False) == []
    assert (root / GATES / "sweep.md").is_file()
    assert (root / GATES / "results.md").is_file()


def test_a_figure_of_the_summary_page_must_stand_in_one_of_its_blocks(root: Path) -> None:
    page = root / "docs" / "results.md"
    block = f"<!-- from {GATES}/results.json: federated, in short -->\n<!-- end -->\n"
    page.write_text(f"Ours has 2.000 in 3 rounds.\n\n{block}The other has 3.000.\n")
    rebuild(root, write=True)
    assert rebuild(root, write=False) == []
    replace(page, "Ours has 2.000", "Ours has 1.900")
    assert rebuild(root, write=False) == ["docs/results.md: 1.900 is in no block"]


def test_a_changed_block_is_named_and_rebuilt(root: Path) -> None:
    before = (root / "README.md").read_text()
    replace(root / "README.md", "2.000", "1.000")
    assert rebuild(root, write=False) == [f"README.md: {GATES}/sweep.json: table"]
    assert "1.000" in (root / "README.md").read_text()
    assert rebuild(root, write=True) == [f"README.md: {GATES}/sweep.json: table"]
    assert (root / "README.md").read_text() == before


def test_a_changed_json_is_seen_in_every_block_and_document_that_it_reaches(root: Path) -> None:
    replace(root / GATES / "sweep.json", '"perplexity": 2.0', '"perplexity": 1.5')
    assert rebuild(root, write=False) == [f"README.md: {GATES}/sweep.json: table", f"{GATES}/sweep.md"]
    replace(root / GATES / "results.json", '"perplexity": 3.0', '"perplexity": 3.5')
    compared = [f"docs/method.md: {GATES}/results.json: {name}" for name in ("federated", "summary")]
    found = rebuild(root, write=False)
    assert [place for place in found if "sweep" not in place] == [*compared, f"{GATES}/results.md"]


def test_a_changed_or_missing_document_is_named_and_rebuilt(root: Path) -> None:
    replace(root / GATES / "results.md", "ours", "theirs")
    (root / GATES / "sweep.md").unlink()
    assert rebuild(root, write=False) == [f"{GATES}/sweep.md", f"{GATES}/results.md"]
    rebuild(root, write=True)
    assert rebuild(root, write=False) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "<!-- end -->",
            "",
            r"README\.md: the block of docs/results/gates/sweep\.json: table has no end: write <!-- end",
        ),
        ("<!-- end -->", f"<!-- from {GATES}/sweep.json: table -->\n<!-- end -->", "table has no end"),
        (": table", ": tabl", r"README\.md: docs/results/gates/sweep\.json has no section 'tabl': did you mean table"),
        (
            "sweep.json",
            "none/sweep.json",
            r"none/sweep\.json must be a sweep\.json or results\.json or compressions\.json or local_step\.json",
        ),
        (
            "sweep.json",
            "sweep.md",
            r"sweep\.md must be a sweep\.json or results\.json or compressions\.json or local_step\.json",
        ),
    ],
)
def test_a_block_that_cannot_be_built_is_an_error_that_names_it(root: Path, old: str, new: str, reason: str) -> None:
    replace(root / "README.md", old, new)
    with pytest.raises(ValueError, match=reason):
        rebuild(root, write=False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--check"], 1, f"README.md: {GATES}/sweep.json: table differs from its JSON: run `make docs`\n"),
        ([], 0, f"README.md: {GATES}/sweep.json: table was rebuilt\n"),
    ],
)
def test_the_check_ends_with_exit_code_1_and_changes_nothing(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    replace(root / "README.md", "2.000", "1.000")
    monkeypatch.setattr(document, "distribution_root", lambda: root)
    monkeypatch.setattr("sys.argv", ["document", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().out) == (code, said)
    assert ("1.000" in (root / "README.md").read_text()) == bool(words)


def test_a_block_that_cannot_be_built_ends_in_one_line_and_exit_code_2(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / GATES)
    monkeypatch.setattr(document, "distribution_root", lambda: root)
    monkeypatch.setattr("sys.argv", ["document", "--check"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: README.md: ")
