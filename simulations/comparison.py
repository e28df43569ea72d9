"""A comparison as its TOML file says it: the methods, what they share, and the rates that each searches."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.config import Value, unknown_key_message
from common.near_names import did_you_mean
from simulations.settings import resolve

# Keys that the comparison sets by itself, and what to do instead.
OWN_KEYS = {
    "seed": "use --seeds",
    "eval-split": "the search evaluates on validation, the comparison on test",
    "run-directory": "use --output",
    "learning-rate": "list rates for each method",
}
# Methods are compared on the same partitions, evaluation and backbone.
SAME_KEYS = (
    "data columns skip-bad-rows train-examples eval-examples partition dirichlet-alpha tasks-per-client "
    "shards-per-client tasks num-clients clients backbone quantization too-long-prompts chat-template"
).split()
# The other sections of the document; groups are sections too.
SUMMARY, CLIENTS, SEARCH = "summary", "clients", "search"

TABLES = {"shared": dict, "search": dict, "methods": dict}
SEARCH_KEYS = {"seeds": list, "num-rounds": int}
REQUIRED = {"label": str, "kind": str, "group": str}
METHOD_KEYS = REQUIRED | {"settings": dict, "source": dict, "rates": list, "equal-bytes": bool}
METHOD_KEYS |= {"local-of": str, "searched-as": str}
KINDS = {str: "text", dict: "a table", list: "a list", bool: "true or false", int: "a whole number"}


@dataclass(frozen=True)
class Method:
    """One method: what it changes of the shared settings, and how it is told of."""

    name: str
    label: str
    kind: str
    group: str
    settings: Mapping[str, Value]
    source: Mapping[str, Value] | None  # the settings of a run whose prompts it starts from
    rates: tuple[float, ...]  # none where nothing is learned, or where another method's search counts
    searched_as: str | None
    local_of: str | None
    equal_bytes: bool


@dataclass(frozen=True)
class Comparison:
    """The methods by name, those of them to compare, and what all share."""

    shared: Mapping[str, Value]
    search_seeds: tuple[int, ...]
    search_num_rounds: int | None
    methods: Mapping[str, Method]
    compared: tuple[str, ...]

    def searching(self, method: Method) -> Method:
        """Return the method whose search gives this one its rate; it has no rates where nothing is learned."""
        return self.methods[method.searched_as or method.name]


def comparison_presets() -> dict[str, Path]:
    """Return the comparisons by name: the TOML files of comparisons/."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "comparisons").glob("*.toml"))}


def read_comparison(words: Sequence[str], names: str | None) -> Comparison:
    """Read a preset or file with `key=value` words for all runs; `names` are those of the methods, with commas between.

    Raises ValueError, naming table and key, for anything that the format does not know or that contradicts itself.
    """
    named = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(named) != 1:
        raise ValueError(f"expected one comparison, got {' and '.join(named) or 'none'}: {_expected()}")
    comparison = parse_comparison(_read(named[0]))
    overrides = [word for word in words if word not in named]
    spoken = [word.partition("=")[0] for word in overrides]
    merged = resolve(overrides, comparison.shared)
    shared = dict(comparison.shared) | {key: merged[key] for key in spoken}
    _check_own(shared, "the command line")
    for method in comparison.methods.values():
        for key in (key for key in spoken if key in method.settings):
            raise ValueError(f"methods.{method.name} sets {key} itself: leave {key}=... out or change the file")
    return replace(comparison, shared=shared, compared=_chosen(names, comparison.methods))


def parse_comparison(tables: dict[str, Any]) -> Comparison:
    """Build a comparison of all methods from the tables of a file. Raises ValueError as `read_comparison` does."""
    _check_keys("the file", tables, TABLES, ["methods"])
    shared, search = tables.get("shared", {}), tables.get("search", {})
    _check_own(shared, "shared")
    resolve([], shared)
    _check_keys("search", search, SEARCH_KEYS, ["seeds"] if "search" in tables else [])
    seeds, num_rounds = search.get("seeds", [0]), search.get("num-rounds")
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"search: seeds must be different whole numbers from 0, got {seeds}")
    if num_rounds is not None and num_rounds < 1:
        raise ValueError(f"search: num-rounds must be at least 1, got {num_rounds}")
    methods = {name: _method(name, table) for name, table in tables["methods"].items()}
    if not methods:
        raise ValueError("methods is empty: name one method at least, as [methods.NAME]")
    _check_together(methods)
    return Comparison(shared, tuple(seeds), num_rounds, methods, tuple(methods))


def _expected() -> str:
    return f"expected {', '.join(comparison_presets())}, or the path of a TOML file"


def _read(name: str) -> dict[str, Any]:
    path = comparison_presets().get(name, Path(name))
    if not path.is_file():
        hint = did_you_mean(name, list(comparison_presets()), otherwise=_expected())
        raise ValueError(f"unknown comparison {name!r}: {hint}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def _method(name: str, table: Any) -> Method:
    where = f"methods.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name, flags=re.ASCII):
        raise ValueError(f"{where}: a method's name must be letters, digits, '-', '_', '+' or '.'")
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table, got {table!r}: write [{where}]")
    _check_keys(where, table, METHOD_KEYS, list(REQUIRED))
    settings, source = table.get("settings", {}), table.get("source")
    for key, given in (("settings", settings), ("source", source or {})):
        _check_own(given, f"{where}.{key}")
        for unknown in (unknown for unknown in given if unknown not in (known := resolve([]))):
            raise ValueError(f"{where}.{key}: {unknown_key_message(unknown, list(known))}")
    if differing := [key for key in SAME_KEYS if key in settings]:
        raise ValueError(f"{where}: {differing[0]} must be the same for all methods: set it in [shared]")
    if source is not None and "prompt-init" in settings:
        raise ValueError(f"{where}: prompt-init is the source's directory: leave one of the two out")
    if table["group"] in (SUMMARY, CLIENTS, SEARCH):
        raise ValueError(f"{where}: group must not be {table['group']}, which is a section of the tables: rename it")
    rates = table.get("rates", [])
    wrong = [rate for rate in rates if type(rate) not in (int, float) or not 0 < rate < float("inf")]
    if wrong or len(set(rates)) < len(rates) or ("rates" in table and not rates):
        raise ValueError(f"{where}: rates must be different numbers above 0, got {rates}")
    if rates and "searched-as" in table:
        raise ValueError(f"{where}: rates have no effect beside searched-as: leave one of the two out")
    return Method(
        name,
        label=table["label"],
        kind=table["kind"],
        group=table["group"],
        settings=settings,
        source=source,
        rates=tuple(float(rate) for rate in rates),
        searched_as=table.get("searched-as"),
        local_of=table.get("local-of"),
        equal_bytes=table.get("equal-bytes", False),
    )


def _check_together(methods: Mapping[str, Method]) -> None:
    by_number: dict[int, str] = {}
    for method in methods.values():
        for key, other in (("searched-as", method.searched_as), ("local-of", method.local_of)):
            others = [name for name in methods if name != method.name]
            if other is not None and other not in others:
                hint = did_you_mean(other, others, otherwise=f"expected another of {', '.join(others)}")
                raise ValueError(f"methods.{method.name}: unknown method {other!r} in {key}: {hint}")
        if method.searched_as and not methods[method.searched_as].rates:
            raise ValueError(f"methods.{method.name}: {method.searched_as}, which it is searched as, has no rates")
        if method.rates:
            by_number.setdefault(len(method.rates), method.name)
    if len(by_number) > 1:
        told = " and ".join(f"{number} of {name}" for number, name in sorted(by_number.items()))
        raise ValueError(f"all methods must list the same number of rates, got {told}: search all as hard")


def _chosen(names: str | None, methods: Mapping[str, Method]) -> tuple[str, ...]:
    wanted = list(methods) if names is None else names.split(",")
    for name in wanted:
        if name not in methods:
            hint = did_you_mean(name, list(methods), otherwise=f"expected {', '.join(methods)}")
            raise ValueError(f"--methods: unknown method {name!r}: {hint}")
    return tuple(name for name in methods if name in wanted)


def _check_keys(where: str, table: dict[str, Any], known: Mapping[str, type], required: Sequence[str]) -> None:
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}: {unknown_key_message(key, list(known))}")
        if type(value) is not known[key]:
            raise ValueError(f"{where}: {key} must be {KINDS[known[key]]}, got {value!r}")
    for key in required:
        if key not in table:
            raise ValueError(f"{where}: {key} is missing: it must be {KINDS[known[key]]}")


def _check_own(settings: Mapping[str, Any], where: str) -> None:
    for key in settings:
        if key in OWN_KEYS:
            raise ValueError(f"{where}: {key} is set for each run of a comparison: {OWN_KEYS[key]}")
