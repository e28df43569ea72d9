"""Settings: the defaults, then one preset or file, then what the command line says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.adapter_spec import PROMPT_METHODS
from common.backbone_source import distribution_root
from common.config import default_run_config, read_config
from simulations.settings import presets, resolve

DEFAULTS = default_run_config(distribution_root())


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_no_words_give_the_defaults() -> None:
    assert resolve([]) == DEFAULTS


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_right_configuration(name: str) -> None:
    assert resolve([name]) != DEFAULTS or name == "mixture"
    read_config(resolve([name]))


def test_columns_are_named_with_equals_signs_and_quotes() -> None:
    words = ["data=a.csv", "columns=instruction=question,task='qa'", "skip-bad-rows=true"]
    settings = resolve(words)
    assert [settings[key] for key in ("data", "columns", "skip-bad-rows")] == [
        "a.csv",
        "instruction=question,task='qa'",
        True,
    ]


def test_a_preset_changes_what_it_names_and_no_more() -> None:
    changed = {key: value for key, value in resolve(["one-group"]).items() if value != DEFAULTS[key]}
    assert changed == {"name": "one-group", "num-experts": 1, "tokens-per-expert": 44}


def test_the_command_line_overrides_a_preset_wherever_it_stands() -> None:
    for words in (["one-group", "tokens-per-expert=7"], ["tokens-per-expert=7", "one-group"]):
        settings = resolve(words)
        assert (settings["num-experts"], settings["tokens-per-expert"]) == (1, 7)


def test_what_runs_share_stands_between_the_defaults_and_the_words_and_may_be_void() -> None:
    settings = resolve(["num-experts=1", "seed=2"], {"seed": 1, "temperature": 0.5})
    assert settings == DEFAULTS | {"num-experts": 1, "seed": 2, "temperature": 0.5}
    with pytest.raises(ValueError, match="shared: unknown key 'num-round': did you mean num-rounds"):
        resolve([], {"num-round": 1})


def test_the_last_word_for_a_key_wins() -> None:
    assert resolve(["seed=1", "seed=2"])["seed"] == 2


def test_a_files_path_may_have_an_equals_sign(tmp_path: Path) -> None:
    directory = tmp_path / "gate=input,seed=0"
    directory.mkdir()
    (directory / "mine.toml").write_text("seed = 7\n")
    assert resolve([str(directory / "mine.toml"), "name=b"]) == DEFAULTS | {"seed": 7, "name": "b"}


def test_a_toml_file_is_read(toml: Callable[[str], str]) -> None:
    settings = resolve([toml('name = "a"\nlearning-rate = 1e-3\ngate-pretraining = "none"\n'), "name=b"])
    assert [settings[key] for key in ("name", "learning-rate", "gate-pretraining")] == ["b", 1e-3, "none"]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("name=plain", "plain"),
        ("name=8", "8"),  # a text's value stays text
        ("name=true", "true"),
        ('name="quoted"', "quoted"),
        ("name='quoted too'", "quoted too"),
        ("backbone=/models/a=b", "/models/a=b"),
        ("run-directory=", ""),
        ("num-rounds=3", 3),
        ("num-rounds=1_000", 1000),
        ("learning-rate=1e-3", 1e-3),
        ("learning-rate=2", 2),
        ("centralised=false", False),
        ("centralised=true", True),
    ],
)
def test_a_value_is_read_as_its_key_asks(word: str, value: Any) -> None:
    read = resolve([word])[word.partition("=")[0]]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("centralised=True", "centralised must be true or false, got 'True'"),
        ("centralised=1", "centralised must be true or false, got 1"),
        ("num-rounds=many", "num-rounds must be a whole number, got 'many'"),
        ("num-rounds=2.0", "num-rounds must be a whole number, got 2.0"),
        ("num-rounds=true", "num-rounds must be a whole number, got True"),
        ("num-rounds=", "num-rounds must be a whole number, got ''"),
        ("learning-rate=nan", "learning-rate must be above 0, got nan"),
        ('name="open', "name must be letters"),
    ],
)
def test_a_value_of_the_wrong_type_fails_the_configurations_check(word: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_config(resolve([word]))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["mixtur"], "unknown preset 'mixtur': expected mixture, one-group, or the path of a TOML file"),
        (["mixture", "one-group"], "expected one preset or TOML file, got mixture and one-group: name one"),
        (["num-round=3"], "the command line: unknown key 'num-round': did you mean num-rounds"),
        (["xyz=3"], "the command line: unknown key 'xyz': known keys: name, seed, "),
        (["=3"], "the command line: unknown key ''"),
        (["seed=[1, 2]"], r"the command line: seed must be one value, got \[1, 2\]"),
        (["seed=2026-01-01"], "the command line: seed must be one value"),
        (["dirichlet-alpha=0.1"], "dirichlet-alpha has no effect on partition=by-task"),
        (
            ["task-weight-learning-rate=0.1"],
            "task-weight-learning-rate has no effect on task-weights=size: add task-weights=learned or leave it out",
        ),
        (["task-embedding-size=4"], "task-embedding-size has no effect on gate=input: add gate=both or leave it out"),
        *(
            (
                [f"method={method}", word],
                f"{word.partition('=')[0]} has no effect on method={method}: add method=mixture or leave it out",
            )
            for method, word in (
                ("lora", "num-experts=4"),
                ("ffa-lora", "gate=both"),
                ("prompt-tuning", "prompt-init=vocabulary"),
                ("prefix-tuning", "tokens-per-expert=4"),
                ("multitask-prompt-tuning", "injection-layer=1"),
                ("hand-written", "freeze-gate=true"),
                ("lora", "balance-weight=0.1"),
                ("lora", "shared-expert=true"),
                ("lora", "prompt-form=hidden"),
                ("lora", "prompt-positions=answer"),
            )
        ),
        (["num-virtual-tokens=4"], "num-virtual-tokens has no effect on method=mixture: add method=multitask-prompt-t"),
        (["method=lora", "num-virtual-tokens=4"], "num-virtual-tokens has no effect on method=lora: add method="),
        (["lora-rank=4"], "lora-rank has no effect on method=mixture: add method=lora or leave it out"),
        (["method=prefix-tuning", "lora-targets=q_proj"], "lora-targets has no effect on method=prefix-tuning: add"),
        (["prompt-text=Hello"], "prompt-text has no effect on method=mixture: add method=hand-written or leave it out"),
        (["method=lora", "num-shots=2"], "num-shots has no effect on method=lora: add method=hand-written or leave"),
        (["freeze-gate=true", "gate-learning-rate=0.1"], "gate-learning-rate has no effect on a frozen gate: leave it"),
        (["balance-weight=0.1", "freeze-gate=true"], "balance-weight has no effect on a frozen gate: leave it out or"),
        (["one-group", "freeze-gate=true"], "freeze-gate has no effect on one expert"),
        (["client-fraction=0.5", "centralised=true"], "client-fraction has no effect on centralised training: leave"),
        (["columns=dolly"], "columns has no effect on data=skills, the built-in tasks: name data or leave it out"),
        (["skip-bad-rows=true"], "skip-bad-rows has no effect on data=skills, the built-in tasks: name data or leave"),
        (["measure-examples=4"], "measure-examples has no effect without measures: name some or leave it out"),
        (["max-answer-tokens=4"], "max-answer-tokens has no effect without measures=exact-match or rouge-l: leave it"),
        (["max-answer-tokens=4", "measures=choice-accuracy"], "max-answer-tokens has no effect without measures=exact"),
        (["num-experts=1", "gate=task"], "gate has no effect on one expert"),
        (["one-group", "top-k=1"], "top-k has no effect on one expert"),
        (["one-group", "temperature=0.5"], "temperature has no effect on one expert, which has no gate"),
        (["num-experts=1", "balance-weight=0", "gate-pretraining=none"], "balance-weight has no effect on one expert"),
    ],
)
def test_a_wrong_word_is_an_error_that_names_it(words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        resolve(words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("num-rounds", r"mine\.toml is not TOML: "),
        ("num-round = 3", r"mine\.toml: unknown key 'num-round': did you mean num-rounds"),
        ("[run]\nnum-rounds = 3", r"mine\.toml: unknown key 'run'"),
        ("seed = [1]", r"mine\.toml: seed must be one value, got \[1\]"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(toml: Callable[[str], str], text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        resolve([toml(text)])


@pytest.mark.parametrize(
    "words",
    [
        ["dirichlet-alpha=0.1", "partition=dirichlet"],
        ["task-weight-learning-rate=0.1", "task-weights=learned"],
        ["task-embedding-size=4", "gate=task"],
        ["task-embedding-size=4", "gate=both"],
        ["centralised=true"],
        ["measures=choice-accuracy", "measure-examples=4"],
        ["measures=choice-accuracy,rouge-l", "max-answer-tokens=4"],
    ],
)
def test_a_key_that_has_an_effect_is_taken(words: list[str]) -> None:
    read_config(resolve(words))


@pytest.mark.parametrize(
    "words",
    [
        *(["method=" + method, "num-virtual-tokens=4"] for method in PROMPT_METHODS),
        *(["method=" + method, "lora-rank=4", "lora-targets=all-linear"] for method in ("lora", "ffa-lora")),
        ["method=hand-written", "prompt-text=Answer in one word.", "num-shots=2"],
        ["freeze-gate=true", "gate=both"],
        ["gate-learning-rate=0.1", "freeze-gate=false"],
        ["method=lora", "aggregation=none", "num-personal-steps=3"],
    ],
)
def test_a_methods_own_keys_are_taken(words: list[str]) -> None:
    settings = resolve(words)
    read_config(settings)
    assert all(str(settings[word.partition("=")[0]]).lower() == word.partition("=")[2].lower() for word in words)
