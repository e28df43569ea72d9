"""The grid: values are read as the command line reads them, and each combination is checked before anything runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from fakes import SMALL

from simulations.grid import Axis, Point, points, portable, read_axes, read_seeds, shown, value_of
from simulations.settings import resolve


def grid(*over: str, words: list[str] = SMALL, seeds: str = "0") -> list[Point]:
    return points(words, read_axes(over, words), read_seeds(seeds), "validation", Path("runs"))


@pytest.mark.parametrize(
    ("over", "texts"),
    [
        ("temperature=0.1,0.5, 1", ("0.1", "0.5", "1")),
        ("injection-layer=-1,0", ("-1", "0")),
        ('name="add,age",4', ('"add,age"', "4")),
        ("name='a,b','c'", ("'a,b'", "'c'")),
        (r'name="a\",b",c', (r'"a\",b"', "c")),
        ('name="",a', ('""', "a")),
        ("backbone=models/a=b,skills", ("models/a=b", "skills")),
        ("name=two words,one", ("two words", "one")),
    ],
)
def test_commas_separate_values_but_not_within_quotes(over: str, texts: tuple[str, ...]) -> None:
    assert read_axes([over], []) == [Axis(over.partition("=")[0], texts)]


@pytest.mark.parametrize(
    ("over", "words", "reason"),
    [
        (["temperature"], [], "--over must be KEY=VALUE,VALUE..., got 'temperature'"),
        (["temperatur=1"], [], "--over: unknown key 'temperatur': did you mean temperature"),
        (["temperature="], [], "--over temperature: a value is missing in ''"),
        (["temperature=1,,2"], [], "--over temperature: a value is missing in '1,,2'"),
        (["temperature=1,"], [], "--over temperature: a value is missing in '1,'"),
        (['name="open,a'], [], "--over name: cannot read '\"open,a': quote all of a value"),
        (['name=a"b",c'], [], "--over name: cannot read 'a\"b\",c'"),
        (["seed=1,2"], [], "seed is set for each run of a sweep: use --seeds instead"),
        (["temperature=1"], ["seed=1"], "use --seeds instead"),
        (["temperature=1"], ["eval-split=test"], "use --split instead"),
        (["temperature=1"], ["run-directory=a"], "use --output instead"),
        (["temperature=1", "temperature=2"], [], "--over names temperature twice"),
        (["temperature=1"], ["temperature=2"], "temperature is both fixed and swept"),
    ],
)
def test_what_cannot_be_swept_is_an_error_that_says_why(over: list[str], words: list[str], reason: str) -> None:
    with pytest.raises(ValueError) as told:
        read_axes(over, words)
    assert reason in str(told.value)


def test_seeds_are_whole_numbers() -> None:
    assert read_seeds("2,0,11") == [2, 0, 11]


@pytest.mark.parametrize("text", ["", "a", "1,", "1.5", "-1", "1, 2", "1,1"])
def test_other_seeds_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds must "):
        read_seeds(text)


def test_every_combination_with_every_seed_has_its_words_and_a_readable_directory() -> None:
    found = grid("temperature=0.5,1", "num-experts=2,4", seeds="0,1")
    settings = [(temperature, experts) for temperature in (0.5, 1.0) for experts in (2, 4)]
    assert [(*point.settings.values(), point.seed) for point in found] == [
        (*setting, seed) for setting in settings for seed in (0, 1)
    ]
    last = found[-1].run
    assert last.words == (*SMALL, "temperature=1", "num-experts=4", "seed=1", "eval-split=validation")
    assert last.directory == Path("runs/temperature=1,num-experts=4,seed=1")


@pytest.fixture
def backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside what looks like backbones."""
    monkeypatch.chdir(tmp_path)
    for name in ("own/a,b", "own/a-b", "other/a-b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")


@pytest.mark.usefixtures("backbones")
def test_values_that_are_no_names_of_files_get_names_that_differ() -> None:
    found = grid('backbone="own/a,b",own/a-b,other/a-b,skills')
    assert [point.settings["backbone"] for point in found] == ["own/a,b", "own/a-b", "other/a-b", "skills"]
    assert found[0].run.words[-3] == 'backbone="own/a,b"'
    names = [point.run.directory.name for point in found]
    assert [re.sub("-[0-9a-f]{8},", "-#,", name) for name in names] == [
        "backbone=own-a-b-#,seed=0",
        "backbone=own-a-b-#,seed=0",
        "backbone=other-a-b-#,seed=0",
        "backbone=skills,seed=0",
    ]
    assert len(set(names)) == 4


@pytest.mark.usefixtures("backbones")
def test_a_path_from_the_root_is_known_by_its_last_part(tmp_path: Path) -> None:
    (point,) = grid(f"backbone={tmp_path}/own/a-b")
    assert point.settings == {"backbone": "a-b"}
    assert f"backbone={tmp_path}/own/a-b" in point.run.words
    with pytest.raises(ValueError, match="backbone=a-b,seed=0 comes twice"):
        grid(f"backbone={tmp_path}/own/a-b,{tmp_path}/other/a-b")


@pytest.mark.parametrize(
    ("over", "words", "reason"),
    [
        (["temperature=1,0"], [], "temperature=0 seed=3: temperature must be above 0, got 0.0"),
        (["num-rounds=1,many"], [], "num-rounds=many seed=3: num-rounds must be a whole number, got 'many'"),
        (["temperature=1", "num-experts=2,1"], [], "temperature=1 num-experts=1 seed=3: temperature has no effect"),
        (["num-clients=2,999"], ["train-examples=4"], "num-clients=999 seed=3: num-clients is 999, but there are only"),
        (["temperature=1,2,1.0"], SMALL, "temperature=1,seed=3 comes twice: leave one out"),
        (["temperature=1"], ["mixtur"], "unknown preset 'mixtur'"),
    ],
)
def test_a_combination_that_cannot_run_is_an_error_that_names_it(
    over: list[str], words: list[str], reason: str
) -> None:
    with pytest.raises(ValueError) as told:
        grid(*over, words=words, seeds="3")
    assert reason in str(told.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/model", "model"),
        ("backbone=/home/me/model", "backbone=model"),
        ('data="/home/me/a.jsonl",/home/me/b.jsonl,c/d.jsonl', 'data="a.jsonl",b.jsonl,c/d.jsonl'),
        ("aggregation+gate-encoder=plain+/home/me/model", "aggregation+gate-encoder=plain+model"),
        ("models/own", "models/own"),
        ("../out", "../out"),
        (0.5, 0.5),
        (True, True),
    ],
)
def test_what_is_recorded_holds_no_path_from_the_root(value: Any, expected: Any) -> None:
    assert portable(value) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (1.0, "1"), (1e-5, "1e-05"), (7, "7"), (True, "true"), ("a b", "a b")]
)
def test_a_value_is_shown_as_it_is_written(value: Any, text: str) -> None:
    assert shown(value) == text


def test_keys_that_change_together_are_one_axis() -> None:
    first, second = grid("num-local-steps+num-rounds=6+40,30+8")
    assert first.run.words[len(SMALL) :][:2] == ("num-local-steps=6", "num-rounds=40")
    assert first.settings == {"num-local-steps+num-rounds": "6+40"}
    assert second.run.directory.name == "num-local-steps+num-rounds=30+8,seed=0"
    config = resolve(second.run.words)
    assert (config["num-local-steps"], config["num-rounds"]) == (30, 8)
    assert value_of("num-local-steps+num-rounds", config) == "30+8"
    assert value_of("num-rounds", config) == 8


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        (
            "num-local-steps+num-rounds=6+40,30",
            "--over num-local-steps+num-rounds: expected 2 values joined by +, got '30'",
        ),
        ("num-local-steps+seed=6+1", "seed is set for each run of a sweep: use --seeds instead"),
        ("num-local-steps+num-local-steps=6+1", "--over names num-local-steps twice"),
        ("num-local-steps+rounds=6+1", "--over: unknown key 'rounds'"),
        ("num-local-steps+num-clients=6+1", "num-clients is both fixed and swept"),
    ],
)
def test_what_cannot_change_together_is_an_error_that_says_why(over: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        grid(over)


def test_a_plus_within_one_keys_value_is_part_of_it() -> None:
    (point,) = grid("learning-rate=1e+0")
    assert point.settings == {"learning-rate": 1.0}
