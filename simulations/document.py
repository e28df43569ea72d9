"""Rebuild the tables in documents from the JSON that they come from, or check that they agree.

    python -m simulations.document [--check]

A block of README.md or docs/**/*.md, and every sweep.md and results.md under docs/results, must be what its JSON gives:

    <!-- from docs/results/method/gates/sweep.json: table -->
    ...
    <!-- end -->

What follows the colon names a section: a sweep has `table`, and `across KEY` with a column for each of a swept key's
values; a comparison has its groups, each also with `, in short`, `summary`, `clients` and `search`; benchmarks have
`table`. In docs/results.md a figure in the text between the blocks must stand in one of them.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.atomic_file import replace_file
from common.backbone_source import distribution_root
from common.near_names import did_you_mean
from simulations import comparison_report, comparison_table, sweep_table
from simulations.benchmark_pages import local_step, round_overhead, startup, wire
from simulations.compression import compressions_table

RESULTS, SUMMARY_PAGE = Path("docs") / "results", Path("docs") / "results.md"
FIGURE = re.compile(r"\d+\.\d+")


class Kind(NamedTuple):
    """What is made of a JSON file: the document beside it, and the sections that other documents may show."""

    document: str
    written: Callable[[dict[str, Any]], str]
    sections: Callable[[dict[str, Any]], dict[str, str]]


# By the file's name.
KINDS = {
    sweep_table.JSON: Kind(sweep_table.TABLE, sweep_table.document, sweep_table.sections),
    comparison_report.JSON: Kind(comparison_report.DOCUMENT, comparison_table.document, comparison_table.sections),
    compressions_table.JSON: Kind(
        compressions_table.DOCUMENT, compressions_table.document, compressions_table.sections
    ),
    local_step.JSON: Kind(local_step.DOCUMENT, local_step.document, local_step.sections),
    round_overhead.JSON: Kind(round_overhead.DOCUMENT, round_overhead.document, round_overhead.sections),
    startup.JSON: Kind(startup.DOCUMENT, startup.document, startup.sections),
    wire.JSON: Kind(wire.DOCUMENT, wire.document, wire.sections),
}
BEGIN, END = re.compile(r"<!-- from (\S+): (.+?) -->"), "<!-- end -->"


def main() -> None:
    """Rewrite what differs, or with --check name it and end with exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; name what differs")
    is_check = parser.parse_args().check
    root = distribution_root()
    try:
        differing = rebuild(root, write=not is_check)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for place in differing:
        print(f"{place} {'differs from its JSON: run `make docs`' if is_check else 'was rebuilt'}")
    sys.exit(1 if is_check and differing else 0)


def rebuild(root: Path, write: bool) -> list[str]:
    """Return the blocks and files that differ from what their JSON gives; rewrite them if asked.

    Raises ValueError, naming file and block, for a block that cannot be built.
    """
    differing = []
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        where = path.relative_to(root)
        old = path.read_text(encoding="utf-8")
        new, blocks = _rebuilt(old, str(where), root)
        differing += [f"{where}: {block}" for block in blocks]
        if write and new != old:
            replace_file(path, new.encode())
    if (page := root / SUMMARY_PAGE).is_file():
        loose = loose_figures(page.read_text(encoding="utf-8"), str(SUMMARY_PAGE))
        differing += [f"{SUMMARY_PAGE}: {figure} is in no block" for figure in loose]
    for name, kind in KINDS.items():
        for source in sorted((root / RESULTS).rglob(name)):
            path, new = source.with_name(kind.document), kind.written(_read(source))
            if not path.is_file() or path.read_text(encoding="utf-8") != new:
                differing.append(str(path.relative_to(root)))
                if write:
                    replace_file(path, new.encode())
    return differing


def _blocks(text: str, where: str) -> Iterator[tuple[str, re.Match[str] | None, str]]:
    """Yield the pieces of a document: the text up to a block's content, the block's mark, and its content.

    The last piece has no block. Raises ValueError, naming the block, for one that has no end.
    """
    position = 0
    while found := BEGIN.search(text, position):
        end = text.find(END, found.end())
        if end < 0 or BEGIN.search(text, found.end(), end):
            raise ValueError(f"{where}: the block of {found[1]}: {found[2]} has no end: write {END} on a line after it")
        yield text[position : found.end()], found, text[found.end() : end]
        position = end
    yield text[position:], None, ""


def _rebuilt(text: str, where: str, root: Path) -> tuple[str, list[str]]:
    """Return a document with all of its blocks built anew, and the names of those that differed."""
    parts, differing = [], []
    for before, found, content in _blocks(text, where):
        parts.append(before)
        if found:
            parts.append(f"\n{_section(root, found[1], found[2], where).strip()}\n")
            if parts[-1] != content:
                differing.append(f"{found[1]}: {found[2]}")
    return "".join(parts), differing


def loose_figures(text: str, where: str) -> list[str]:
    """Return the figures of a page, numbers with a decimal point, that stand in none of its blocks."""
    pieces = list(_blocks(text, where))
    known = {figure for _, _, content in pieces for figure in FIGURE.findall(content)}
    return [figure for before, _, _ in pieces for figure in FIGURE.findall(before) if figure not in known]


def _section(root: Path, source: str, name: str, where: str) -> str:
    path = root / source
    if path.name not in KINDS or not path.is_file():
        raise ValueError(f"{where}: {source} must be a {' or '.join(KINDS)} of this repository")
    report = _read(path)
    sections = KINDS[path.name].sections(report)
    if name not in sections:
        hint = did_you_mean(name, list(sections), otherwise=f"expected {', '.join(sections)}")
        raise ValueError(f"{where}: {source} has no section {name!r}: {hint}")
    return sections[name]


def _read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    main()
