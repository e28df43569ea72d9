"""A comparison's file: what it says is read, and what it says wrongly is told in one line that names the place."""

import re
import tomllib
from pathlib import Path

import pytest
from comparisons import FLAT, SMALL

from simulations.comparison import Comparison, comparison_presets, parse_comparison, read_comparison
from simulations.comparison_runs import Plan


def parsed(text: str) -> Comparison:
    return parse_comparison(tomllib.loads(text))


@pytest.mark.parametrize("name", comparison_presets())
def test_every_preset_is_a_right_comparison(name: str, tmp_path: Path) -> None:
    Plan(read_comparison([name], None), [0], tmp_path).check()


def test_the_file_gives_methods_and_what_they_share() -> None:
    comparison = parsed(SMALL)
    assert (comparison.search_seeds, comparison.search_num_rounds) == ((0,), 3)
    assert comparison.shared == {"train-examples": 4, "eval-examples": 2, "num-clients": 2}
    assert comparison.compared == ("mixture", "one-group")
    one_group = comparison.methods["one-group"]
    assert (one_group.label, one_group.kind, one_group.group) == ("one group", "prompt", "federated")
    assert (one_group.settings, one_group.rates, one_group.equal_bytes) == ({"temperature": 2.0}, (0.1, 0.2, 0.4), True)
    assert not comparison.methods["mixture"].equal_bytes


def test_without_tables_of_their_own_the_search_has_seed_0_and_nothing_is_shared() -> None:
    comparison = parsed(FLAT)
    assert (comparison.search_seeds, comparison.search_num_rounds, comparison.shared) == ((0,), None, {})


def test_an_ablation_takes_the_rate_of_another() -> None:
    comparison = parsed(SMALL + FLAT + 'searched-as = "mixture"')
    assert comparison.searching(comparison.methods["flat"]).name == "mixture"
    assert comparison.searching(comparison.methods["mixture"]).name == "mixture"


def test_words_are_shared_by_all_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SMALL)
    comparison = read_comparison([str(tmp_path / "mine.toml"), "num-rounds=5", "train-examples=6"], "one-group")
    assert comparison.shared == {"train-examples": 6, "eval-examples": 2, "num-clients": 2, "num-rounds": 5}
    assert comparison.compared == ("one-group",)


@pytest.mark.parametrize(
    ("words", "names", "reason"),
    [
        ([], None, "expected one comparison, got none: expected instructions, skills, "),
        (["skills", "other"], None, "expected one comparison, got skills and other"),
        (["skils"], None, "unknown comparison 'skils': did you mean skills?"),
        (["xyz"], None, "unknown comparison 'xyz': expected instructions, skills, or the path of a TOML file"),
        (["skills", "num-round=3"], None, "unknown key 'num-round': did you mean num-rounds"),
        (["skills", "seed=3"], None, "the command line: seed is set for each run of a comparison: use --seeds"),
        (["skills", "gate=task"], None, "methods.mixture-by-task sets gate itself: leave gate=... out or change"),
        (["skills"], "mixtur", "--methods: unknown method 'mixtur': did you mean mixture"),
        (["skills"], "", "--methods: unknown method '': expected mixture, "),
    ],
)
def test_wrong_words_are_an_error_that_names_them(words: list[str], names: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        read_comparison(words, names)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[methods")
    with pytest.raises(ValueError, match=r"mine\.toml is not TOML: "):
        read_comparison([str(tmp_path / "mine.toml")], None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file: methods is missing: it must be a table"),
        ("[methods]", "methods is empty: name one method at least, as [methods.NAME]"),
        ("[method.a]", "the file: unknown key 'method': did you mean methods"),
        ("methods = 3", "the file: methods must be a table, got 3"),
        ("[methods]\na = 3", "methods.a must be a table, got 3: write [methods.a]"),
        ("[shared]\nnum-round = 3" + FLAT, "shared: unknown key 'num-round': did you mean num-rounds"),
        ("[shared]\nlearning-rate = 3" + FLAT, "shared: learning-rate is set for each run of a comparison: list rates"),
        ("[search]\nseed = 3" + FLAT, "search: unknown key 'seed': did you mean seeds"),
        ("[search]\nnum-rounds = 3" + FLAT, "search: seeds is missing: it must be a list"),
        ("[search]\nseeds = [0, 0]" + FLAT, "search: seeds must be different whole numbers from 0, got [0, 0]"),
        ("[search]\nseeds = [0]\nnum-rounds = 0" + FLAT, "search: num-rounds must be at least 1, got 0"),
        (FLAT.replace("kind", "kin"), "methods.flat: unknown key 'kin': did you mean kind"),
        (FLAT.replace("group", "# "), "methods.flat: group is missing: it must be text"),
        (FLAT.replace('"federated"', '"summary"'), "methods.flat: group must not be summary, which is a section"),
        (FLAT.replace("flat", '"a/b"'), "methods.a/b: a method's name must be letters"),
        (FLAT + "equal-bytes = 1", "methods.flat: equal-bytes must be true or false, got 1"),
        (
            FLAT + "settings = { num-expert = 3 }",
            "methods.flat.settings: unknown key 'num-expert': did you mean num-exp",
        ),
        (FLAT + "source = { num-expert = 3 }", "methods.flat.source: unknown key 'num-expert': did you mean num-exp"),
        (FLAT + "settings = { seed = 3 }", "methods.flat.settings: seed is set for each run"),
        (FLAT + "settings = { num-clients = 3 }", "methods.flat: num-clients must be the same for all methods: set it"),
        (FLAT + 'settings = { prompt-init = "a" }\nsource = {}', "methods.flat: prompt-init is the source's directory"),
        (FLAT + "rates = []", "methods.flat: rates must be different numbers above 0, got []"),
        (FLAT + "rates = [0.1, 0.1]", "methods.flat: rates must be different numbers above 0, got [0.1, 0.1]"),
        (FLAT + "rates = [-1]", "methods.flat: rates must be different numbers above 0, got [-1]"),
        (FLAT + "rates = [true]", "methods.flat: rates must be different numbers above 0, got [True]"),
        (
            SMALL + FLAT + "rates = [1]",
            "all methods must list the same number of rates, got 1 of flat and 3 of mixture",
        ),
        (
            SMALL + FLAT + 'local-of = "mixtur"',
            "methods.flat: unknown method 'mixtur' in local-of: did you mean mixture",
        ),
        (
            SMALL + FLAT + 'searched-as = "flat"',
            "methods.flat: unknown method 'flat' in searched-as: expected another of",
        ),
        (SMALL + FLAT + 'rates = [1, 2, 3]\nsearched-as = "mixture"', "methods.flat: rates have no effect beside sear"),
        (
            FLAT + 'searched-as = "b"' + FLAT.replace("flat", "b"),
            "methods.flat: b, which it is searched as, has no rat",
        ),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        parsed(text)
    assert "\n" not in str(error.value)
