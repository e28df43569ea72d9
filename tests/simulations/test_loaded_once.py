"""A run loads its backbone once, and reads, tokenizes and runs each text through the lower layers once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import partition_data, prefix_cache
from client.app import app as client_app
from common import backbone, partition
from common.config import read_config
from server.app import app as server_app
from simulations.inline import run_inline

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nothing_is_loaded_or_tokenized_twice(
    run_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()

    def count(module: Any, name: str, number: Callable[..., int] = lambda *_: 1) -> None:
        real = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            counts[name] += number(*arguments)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    backbone.load_backbone.cache_clear()
    settings = run_config(**{"prefix-cache-gib": 1.0, "num-rounds": 3, "seed": 7})
    count(backbone, "load_model")
    count(partition, "read_data")
    count(partition_data, "tokenize")
    count(prefix_cache, "hidden_at", lambda *arguments: len(arguments[2]))
    run_inline(server_app, client_app, settings, settings["num-clients"])

    num_texts = sum(map(len, partition.partitions_of(read_config(settings))))
    assert counts == {"load_model": 1, "read_data": 1, "tokenize": num_texts, "hidden_at": num_texts}
