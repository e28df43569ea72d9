"""What Flower's programs print, as it is shown."""

from pathlib import Path

import pytest

from common.flower_processes import last_line, plain


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[92mINFO \x1b[0m:      round 1 of 2\n", "INFO :      round 1 of 2"),
        ("\x1b[92mINFO \x1b[0m:      \n", ""),
        ("WARNING :", ""),
        ("│ No such run │", "No such run"),
        ("╭──────╮", ""),
        ("round 1:", "round 1:"),
    ],
)
def test_lines_are_shown_without_decoration(printed: str, shown: str) -> None:
    assert plain(printed) == shown


def test_the_last_line_is_one_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("INFO :      listens\n\x1b[91mERROR \x1b[0m:   no disk\nINFO :      \n\n")
    assert last_line(log) == "ERROR :   no disk"
    log.write_text("")
    assert last_line(log) == "its log is empty"
