"""The runs of a comparison, checked before they start, and the learning rate that each search chose."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import Config, Value, kebab, read_config
from common.perplexity import geometric_mean
from simulations.comparison import SAME_KEYS, Comparison, Method
from simulations.grid import shown
from simulations.runs import Run
from simulations.settings import resolve
from simulations.simulate import read_result

RUNS, SHARED = "runs", "shared.toml"
VALIDATION, TEST = "validation", "test"


@dataclass
class Plan:
    """The runs of a comparison in a directory, and why some of them failed, by the names of their directories."""

    comparison: Comparison
    seeds: Sequence[int]
    output: Path
    failed: dict[str, str] = field(default_factory=dict)

    def searches(self) -> list[Method]:
        """Return the methods that search a rate; with one rate there is nothing to search."""
        compared = (self.comparison.methods[name] for name in self.comparison.compared)
        searching = {self.comparison.searching(method).name: self.comparison.searching(method) for method in compared}
        return [method for method in searching.values() if len(method.rates) > 1]

    def run(self, method: Method, rate: float | None, seed: int, split: str) -> Run:
        """Return a method's run; one with a source must not start before that has ended."""
        name = ",".join([method.name, *_rate_in_a_name(rate), f"seed={seed}", split])
        words = self._words(method.settings, rate, seed, split)
        source = self.source(method, rate, seed)
        return Run(words, self.output / RUNS / name, source.directory if source else None)

    def source(self, method: Method, rate: float | None, seed: int) -> Run | None:
        """Return the run that a method's run starts from: one for search and test, and so of full length."""
        if method.source is None:
            return None
        name = ",".join([method.name, *_rate_in_a_name(rate), f"seed={seed}", "source"])
        words = self._words(method.source, rate, seed, VALIDATION, is_search=False)
        return Run(words, self.output / RUNS / name)

    def _words(
        self, settings: Mapping[str, Value], rate: float | None, seed: int, split: str, is_search: bool = True
    ) -> tuple[str, ...]:
        own = dict(settings) | ({} if rate is None else {"learning-rate": rate}) | {"seed": seed, "eval-split": split}
        most = self.comparison.search_num_rounds
        if split == VALIDATION and is_search and most is not None:
            own["num-rounds"] = min(most, resolve(_texts(settings), self.comparison.shared)["num-rounds"])
        # What all share is in a file: as words, a key that is void for one method would be refused.
        return (str(self.output / SHARED), *_texts(own))

    def check(self) -> None:
        """Read all configurations and partition the data. Raises ValueError, naming the method, for a bad one."""
        configs: dict[tuple[Value, ...], tuple[str, Config]] = {}
        for where, config in self._configs():
            by_key = {kebab(name): value for name, value in vars(config).items()}
            configs[tuple(by_key[key] for key in (*SAME_KEYS, "seed", "eval-split"))] = (where, config)
        # Needs the `datasets` library and some tenths of a second for each seed: only worth it once the rest is right.
        from common.partition import partitions_of

        for where, config in configs.values():
            try:
                partitions_of(config)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None

    def _configs(self) -> Iterator[tuple[str, Config]]:
        methods = [self.comparison.methods[name] for name in self.comparison.compared]
        for split, seeds, tried in (
            (VALIDATION, self.comparison.search_seeds, self.searches()),
            (TEST, self.seeds, methods),
        ):
            for method in tried:
                for seed in seeds:
                    for part, settings in (("settings", method.settings), ("source", method.source)):
                        if settings is not None:
                            yield self._config(f"methods.{method.name}.{part}", settings, seed, split)

    def _config(self, where: str, settings: Mapping[str, Value], seed: int, split: str) -> tuple[str, Config]:
        try:
            _, *words = self._words(settings, None, seed, split)
            return where, read_config(resolve(words, self.comparison.shared))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def write_shared(self) -> None:
        """Write the file that all runs read."""
        lines = _texts(self.comparison.shared)
        (self.output / SHARED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def searched(self, method: Method) -> dict[str, Any]:
        """Return a method's rates with their perplexity on the validation split, and the best: empty without rates.

        The geometric mean over clients and the search's seeds; None where a run failed or is still to come. Nothing is
        chosen before all runs have ended.
        """
        if not method.rates:
            return {}
        if len(method.rates) == 1:
            return {"rates": list(method.rates), "chosen": method.rates[0], "at_edge": False}
        found = {rate: self._validated(method, rate) for rate in method.rates}
        ended = {rate: value for rate, value in found.items() if value is not None}
        finite = {rate: value for rate, value in ended.items() if value < math.inf}
        chosen = min(finite, key=finite.__getitem__) if finite and len(ended) == len(found) else None
        return {
            "rates": list(method.rates),
            "perplexity": [finite.get(rate) for rate in found],
            "chosen": chosen,
            "at_edge": chosen in (min(method.rates), max(method.rates)),
        }

    def _validated(self, method: Method, rate: float) -> float | None:
        """Return a rate's perplexity: infinite when a run of it failed, None when one is still to come."""
        runs = [self.run(method, rate, seed, VALIDATION) for seed in self.comparison.search_seeds]
        if any(run.directory.name in self.failed for run in runs):
            return math.inf
        if not all(run.is_done() for run in runs):
            return None
        return geometric_mean(read_result(run.directory)["perplexity"] for run in runs)


def _rate_in_a_name(rate: float | None) -> list[str]:
    return [] if rate is None else [f"rate={shown(rate)}"]


def _texts(settings: Mapping[str, Value]) -> list[str]:
    """Write settings as words of the command line, which are TOML too."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
