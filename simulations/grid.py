"""The grid of a sweep: keys with their values, and a checked run for each combination and seed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, product
from pathlib import Path
from typing import TypeVar

from common.config import Config, Value, kebab, read_config, unknown_key_message
from simulations.runs import Run
from simulations.settings import resolve

# Keys that the sweep sets by itself, and what to use instead.
OWN_KEYS = {"seed": "--seeds", "eval-split": "--split", "run-directory": "--output"}
ABSOLUTE_PATH = re.compile(r"""(?:^|(?<=[=,"'+]))/[^,"']*""")
TOGETHER = "+"
PIECE = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,"'\s][^,"']*|)\s*(,|$)""")
MAX_NAME_LENGTH = 40

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """A key and its values, written as after `key=` on the command line.

    Keys that change together are joined by "+", and so are their values: `num-local-steps+num-rounds=6+40,30+8`.
    """

    key: str
    texts: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        """The key, or those that change together."""
        return self.key.split(TOGETHER)

    def words(self, text: str) -> list[str]:
        """Return the words of the command line for one of the values. Raises ValueError unless each key has one."""
        values = text.split(TOGETHER) if len(self.keys) > 1 else [text]
        if len(values) != len(self.keys):
            raise ValueError(f"--over {self.key}: expected {len(self.keys)} values joined by +, got {text!r}")
        return [f"{key}={value}" for key, value in zip(self.keys, values, strict=True)]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: the values of the swept keys, the seed, and the run."""

    settings: dict[str, Value]
    seed: int
    run: Run


def read_axes(over: Sequence[str], words: Sequence[str]) -> list[Axis]:
    """Read `KEY=VALUE,VALUE...` texts. Raises ValueError for one that the sweep cannot follow beside the words."""
    fixed = {word.partition("=")[0] for word in words if "=" in word}
    axes = [_read_axis(text) for text in over]
    keys = [key for axis in axes for key in axis.keys]
    for key in [*fixed, *keys]:
        if key in OWN_KEYS:
            raise ValueError(f"{key} is set for each run of a sweep: use {OWN_KEYS[key]} instead")
    for key in keys:
        if key not in (known := resolve([])):
            raise ValueError(f"--over: {unknown_key_message(key, list(known))}")
        if keys.count(key) > 1:
            raise ValueError(f"--over names {key} twice: give all of its values to one, with commas between")
        if key in fixed:
            raise ValueError(f"{key} is both fixed and swept: leave {key}=... or --over {key}=... out")
    return axes


def _read_axis(over: str) -> Axis:
    key, separator, values = over.partition("=")
    if not separator:
        raise ValueError(f"--over must be KEY=VALUE,VALUE..., got {over!r}")
    texts: list[str] = []
    position, comma = 0, ","
    while comma:
        piece = PIECE.match(values, position)
        if piece is None:
            raise ValueError(f"--over {key}: cannot read {values[position:]!r}: quote all of a value or nothing of it")
        if not piece[1]:
            raise ValueError(f'--over {key}: a value is missing in {values!r}: write "" where empty text is meant')
        texts.append(piece[1].strip())
        position, comma = piece.end(), piece[2]
    return Axis(key, tuple(texts))


def read_seeds(text: str) -> list[int]:
    """Read whole numbers with commas between. Raises ValueError for anything else, and for one that comes twice."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"--seeds must be whole numbers with commas between, got {text!r}")
    seeds = [int(seed) for seed in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must differ, got {text!r}")
    return seeds


def points(
    words: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int], split: str, directory: Path
) -> list[Point]:
    """Return a run for each combination and seed, the seeds changing fastest; all of them have been checked.

    Raises ValueError, naming the combination, for one that cannot run.
    """
    values = ([axis.words(text) for text in axis.texts] for axis in axes)
    swept = [(*chain.from_iterable(chosen), f"seed={seed}") for chosen in product(*values) for seed in seeds]
    configs = [_checked(words, chosen, split) for chosen in swept]
    # Needs the `datasets` library and some tenths of a second for each run: only worth it once the rest is right.
    from common.partition import partitions_of

    found: dict[str, Point] = {}
    for chosen, config in zip(swept, configs, strict=True):
        try:
            partitions_of(config)
        except ValueError as error:
            raise ValueError(f"{' '.join(chosen)}: {error}") from None
        by_key = {kebab(name): value for name, value in asdict(config).items()}
        settings = {axis.key: portable(value_of(axis.key, by_key)) for axis in axes}
        name = ",".join(f"{key}={_in_a_name(value)}" for key, value in (settings | {"seed": config.seed}).items())
        if name in found:
            raise ValueError(f"{name} comes twice: leave one out (a path from the root counts by its last part alone)")
        run = Run((*words, *chosen, f"eval-split={split}"), directory / name)
        found[name] = Point(settings, config.seed, run)
    return list(found.values())


def value_of(axis: str, settings: Mapping[str, Value]) -> Value:
    """Return what a run's settings say of an axis: a value, or those of all its keys joined."""
    keys = axis.split(TOGETHER)
    return settings[axis] if len(keys) == 1 else TOGETHER.join(shown(settings[key]) for key in keys)


def _checked(words: Sequence[str], chosen: Sequence[str], split: str) -> Config:
    try:
        return read_config(resolve([*words, *chosen, f"eval-split={split}"]))
    except ValueError as error:
        raise ValueError(f"{' '.join(chosen)}: {error}") from None


def portable(value: T) -> T | str:
    """Return a value, or a word of the command line, with the last part alone of every path from the root."""
    return ABSOLUTE_PATH.sub(lambda path: Path(path[0]).name, value) if isinstance(value, str) else value


def shown(value: Value) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _in_a_name(value: Value) -> str:
    """Return a value as a part of a directory's name; where that says less than the value, a digest makes it unique."""
    text = shown(value)
    plain = re.sub(r"[^\w.+-]", "-", text, flags=re.ASCII)[:MAX_NAME_LENGTH]
    return plain if plain == text and text else f"{plain}-{sha256(text.encode()).hexdigest()[:8]}"
