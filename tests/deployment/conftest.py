"""One deployment for all tests that need real processes: it takes seconds to start."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.deployed import Deployment
from tests.tiny import backbone_on_disk


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that the others run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("kills") is None)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return backbone_on_disk(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def settings(backbone: str) -> list[str]:
    return [
        f"backbone={backbone}",
        *("quantization=none", "compute-dtype=float32", "device=cpu", "num-clients=2", "prefix-cache-gib=0"),
        *("train-examples=4", "eval-examples=2", "num-experts=3", "tokens-per-expert=2", "gate-hidden-size=8"),
        *("batch-size=4", "round-timeout-seconds=45", "wire-format=int8"),
    ]


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    path = Path("/tmp") / f"fedmops-test-{os.getpid()}"  # the path of a UNIX socket is short
    deployed = Deployment(path)
    try:
        deployed.start_all()
        yield deployed
    finally:
        deployed.stop()
        shutil.rmtree(path)
