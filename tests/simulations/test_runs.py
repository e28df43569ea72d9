"""Many runs: a finished one is not run again, a half-way one is run anew, a failure is named, none is left behind."""

import json
import sys
from pathlib import Path

import pytest
from fakes import FakeRuns

from simulations import runs
from simulations.runs import Run, run_all, sole_use


def run_in(directory: Path, *words: str) -> Run:
    return Run(words, directory)


class Ended:
    """Notes what has ended, and how."""

    def __init__(self) -> None:
        self.reasons: dict[str, str | None] = {}

    def __call__(self, run: Run, failure: str | None) -> None:
        assert run.directory.name not in self.reasons
        self.reasons[run.directory.name] = failure


def test_a_run_is_fedmops_simulate_with_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = run_in(Path("a"), "mixture", "seed=1").command()
    directory = f"run-directory={(tmp_path / 'a').resolve()}"
    assert command == [sys.executable, "-m", "simulations.cli", "simulate", "mixture", "seed=1", directory]


def test_a_run_with_a_source_starts_from_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = Run(("seed=1",), Path("b"), source=Path("a")).command()
    assert f"prompt-init={(tmp_path / 'a').resolve()}" in command


def test_all_runs_run_on_one_thread_each_and_their_end_is_told(
    fake_runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    fake_runs.code["c"] = "import os; write('threads', os.environ['OMP_NUM_THREADS'])"
    ended = Ended()
    run_all([run_in(tmp_path / name) for name in "abc"], 2, ended)
    assert ended.reasons == {"a": None, "b": None, "c": None}
    assert all((tmp_path / name / "result.json").is_file() for name in "abc")
    assert (tmp_path / "c" / "threads").read_text() == '"1"'


def test_so_many_run_at_a_time_and_no_more(fake_runs: FakeRuns, tmp_path: Path) -> None:
    # "a" and "b" wait for each other, "c" and "d" too.
    for one, other in ("ab", "ba", "cd", "dc"):
        fake_runs.code[one] = f"while not (directory.parent / {other!r}).exists(): pass"
    at_an_end: list[int] = []

    def ended(run: Run, failure: str | None) -> None:
        at_an_end.append(len(fake_runs.started) - len(at_an_end))

    run_all([run_in(tmp_path / name) for name in "abcd"], 2, ended)
    assert fake_runs.started == [*"abcd"]
    assert max(at_an_end) == 2


def test_a_finished_run_is_not_run_again_even_when_it_was_moved(fake_runs: FakeRuns, tmp_path: Path) -> None:
    run_all([run_in(tmp_path / "old" / "a", "seed=3")], 1, Ended())
    (tmp_path / "old").rename(tmp_path / "new")
    moved = run_in(tmp_path / "new" / "a", "seed=3")
    assert moved.is_done()
    run_all([moved], 1, Ended())
    assert fake_runs.started == ["a"]


def test_a_source_may_have_been_moved_but_not_have_another_name(fake_runs: FakeRuns, tmp_path: Path) -> None:
    run_all([Run((), tmp_path / "old" / "b", source=tmp_path / "old" / "a")], 1, Ended())
    (tmp_path / "old").rename(tmp_path / "new")
    assert Run((), tmp_path / "new" / "b", source=tmp_path / "new" / "a").is_done()
    with pytest.raises(ValueError, match="other settings"):
        Run((), tmp_path / "new" / "b", source=tmp_path / "new" / "c").is_done()


def test_a_key_that_came_later_stands_for_its_default(fake_runs: FakeRuns, tmp_path: Path) -> None:
    run_all([run_in(tmp_path / "a", "seed=3")], 1, Ended())
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    assert settings.pop("temperature") == 1.0
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings))
    assert run_in(tmp_path / "a", "seed=3").is_done()
    with pytest.raises(ValueError, match="other settings"):
        run_in(tmp_path / "a", "seed=3", "temperature=2.0").is_done()


def test_what_changes_no_result_may_differ(fake_runs: FakeRuns, tmp_path: Path) -> None:
    run_all([run_in(tmp_path / "a", "seed=3")], 1, Ended())
    assert run_in(tmp_path / "a", "seed=3", "pass-tokens=77", "prefix-cache-gib=0").is_done()


def test_a_run_that_comes_twice_runs_once(fake_runs: FakeRuns, tmp_path: Path) -> None:
    run_all([run_in(tmp_path / "a"), run_in(tmp_path / "a")], 2, Ended())
    assert fake_runs.started == ["a"]


def test_a_finished_run_with_other_settings_is_an_error_before_anything_starts(
    fake_runs: FakeRuns, tmp_path: Path
) -> None:
    run_all([run_in(tmp_path / "a", "seed=3")], 1, Ended())
    with pytest.raises(ValueError, match=r"a holds a run with other settings: choose another --output or remove it"):
        run_all([run_in(tmp_path / "b"), run_in(tmp_path / "a", "seed=4")], 1, Ended())
    assert fake_runs.started == ["a"]


def test_what_an_interruption_left_is_removed_and_the_run_starts_anew(fake_runs: FakeRuns, tmp_path: Path) -> None:
    half = tmp_path / "a"
    half.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (half / name).write_text("{}")
    run_all([run_in(half)], 1, Ended())
    assert not (half / "metrics.jsonl").exists()
    assert run_in(half).is_done()


def test_a_directory_that_holds_no_run_is_not_removed(fake_runs: FakeRuns, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("dear")
    run_all([run_in(tmp_path / "a")], 1, Ended())
    assert (tmp_path / "a" / "mine.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit('a warning\\nfailed: the disk is full\\n\\n')", "the disk is full"),
        ("sys.exit(7)", "it ended with exit code 7 and said nothing"),
        ("sys.exit('x' * 200_000 + '\\nlast')", "last"),  # more than a pipe holds
    ],
)
def test_a_failed_run_is_named_with_its_reason_and_the_others_go_on(
    fake_runs: FakeRuns, tmp_path: Path, code: str, reason: str
) -> None:
    fake_runs.code["a"] = code
    ended = Ended()
    run_all([run_in(tmp_path / name) for name in "ab"], 1, ended)
    assert ended.reasons == {"a": reason, "b": None}


@pytest.mark.parametrize("code", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_no_process_outlives_an_interruption(
    fake_runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(runs, "PATIENCE_SECONDS", 0.1 if code else 60.0)
    fake_runs.code["a"] = f"{code}\n(directory / 'ready').touch()\nwhile True: pass"
    fake_runs.code["b"] = "while not (directory.parent / 'a' / 'ready').exists(): pass"

    def ended(run: Run, failure: str | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([run_in(tmp_path / name) for name in "abc"], 2, ended)
    assert fake_runs.started == ["a", "b"]
    assert [process.poll() is not None for process in fake_runs.processes] == [True, True]


def test_a_second_process_is_kept_from_a_directory_in_use(tmp_path: Path) -> None:
    with (
        sole_use(tmp_path / "new"),
        pytest.raises(ValueError, match=r"another process writes its runs to .*new: wait for its end or choose"),
        sole_use(tmp_path / "new"),
    ):
        pass
    with sole_use(tmp_path / "new"):
        pass
