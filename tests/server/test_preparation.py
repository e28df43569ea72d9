"""Before round 1: who takes part is settled by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from common.data_counts import CutCounts
from server.preparation import Preparation, prepare_clients
from server.run_directory import METRICS, RunDirectory
from simulations.inline import InlineGrid


@pytest.fixture
def prepare(clients: Any, directory: RunDirectory) -> Callable[[], Preparation]:
    grid = InlineGrid(clients.app, {}, 3)
    # In another order than the partitions', as in deployment.
    return lambda: prepare_clients(grid, grid.get_node_ids()[::-1], 60.0, directory)


def test_clients_are_known_by_their_partition_with_their_node(prepare: Callable[[], Preparation]) -> None:
    prepared = prepare()
    assert prepared.nodes == {0: 1000, 1: 1001, 2: 1002}
    assert [(client, reply.partition) for client, reply in prepared.replies.items()] == [(0, 0), (1, 1), (2, 2)]


def test_the_backbones_scores_are_kept(prepare: Callable[[], Preparation], directory: RunDirectory) -> None:
    prepare()
    lines = (directory.path / METRICS).read_text().splitlines()
    assert len(lines) == 6
    assert all('"round": 0, "phase": "backbone"' in line for line in lines)


OTHER = "0123456789abcdef" * 2
OF_WEIGHTS = "its weights differ from most clients' (01234567 / 7e7e7e7e): copy config.json and *.safetensors from them"
OF_TOKENIZER = "its tokenizer differs from most clients' (01234567 / 70707070): copy tokenizer.json from them"
SAME_FILES = "though weights and tokenizer are the same: install their versions of fedmops and transformers"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": OTHER, "weights_hash": OTHER}, OF_WEIGHTS),
        ({"fingerprint": OTHER, "tokenizer_hash": OTHER}, OF_TOKENIZER),
        ({"weights_hash": OTHER}, OF_WEIGHTS),
        ({"tokenizer_hash": OTHER}, OF_TOKENIZER),
        ({"weights_hash": OTHER, "tokenizer_hash": OTHER}, f"{OF_WEIGHTS}; {OF_TOKENIZER}"),
        ({"weights_hash": OTHER, "kv_shapes": {}}, OF_WEIGHTS),
        ({"hidden_size": 7}, f"its hidden size differs from most clients' (7 / 5), {SAME_FILES}"),
        (
            {"kv_shapes": {1: (2, 4, 6)}},
            "its shape of keys and values by layer differs from most clients' "
            f"(((1, (2, 4, 6)),) / ((1, (2, 4, 6)), (2, (1, 4, 4)))), {SAME_FILES}",
        ),
        (
            {"fingerprint": OTHER},
            "its fingerprint under the run's quantization differs from most clients' "
            f"(01234567 / 5a5a5a5a), {SAME_FILES}",
        ),
    ],
)
def test_a_client_with_another_backbone_is_left_out_and_told_what_differs(
    prepare: Callable[[], Preparation],
    clients: Any,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, **changes)
    prepared = prepare()
    assert list(prepared.nodes) == list(prepared.replies) == [1, 2]
    assert prepared.failed["prepare"][1000] == f"client 0 is left out: {reason}"
    assert prepared.failed["prepare"][1000] in caplog.text


@pytest.mark.parametrize("name", ["fingerprint", "weights_hash", "tokenizer_hash"])
@pytest.mark.parametrize("value", ["", "[red]" * 99, "5A" * 16, "5a" * 16 + chr(10)])
def test_what_is_no_hash_is_rejected(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, **{name: value})
    assert 0 not in prepare().nodes
    assert f"reply rejected: {name.replace('_', '-')} is {value[:40]!r}, expected 32 hexadecimal digits" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"train": CutCounts(17, 0, 0, 0)},
            "the train split's counts are CutCounts(num_examples=17, num_answers_too_long=0, num_prompts_too_long=0, "
            "num_prompts_cut=0), but 16 examples are left",
        ),
        ({"evaluation": CutCounts(3, 0, -1, 0)}, "the evaluation split's counts are CutCounts(num_examples=3"),
        ({"evaluation": CutCounts(4, 0, 0, -1)}, "the evaluation split's counts are CutCounts(num_examples=4"),
        ({"evaluation": CutCounts(4, 0, 0, 5)}, "5 prompts of 4 evaluation examples are cut"),
        ({"num_bad_rows": -1}, "num-bad-rows is -1, expected at least 0"),
    ],
)
def test_counts_that_cannot_be_are_rejected(
    prepare: Callable[[], Preparation],
    clients: Any,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, data_counts=replace(reply.data_counts, **changes))
    assert 0 not in prepare().nodes
    assert f"reply rejected: {reason}" in caplog.text


def test_a_client_that_names_no_quantization_of_ours_is_left_out(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, quantization="[red]" * 99)
    assert 0 not in prepare().nodes
    assert "quantization is '[red][red]" in caplog.text


def test_clients_may_compress_the_backbone_in_their_own_ways(prepare: Callable[[], Preparation], clients: Any) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, quantization="int8")
    found = prepare()
    assert found.replies[0].quantization == "int8" and found.replies[1].quantization == "none"


def test_a_partition_that_another_node_holds_is_refused(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda reply: replace(reply, partition=2)
    prepared = prepare()
    assert prepared.nodes == {1: 1001, 2: 1002}
    assert "partition 2 is another node's: give each node its own partition-id" in caplog.text


def test_a_client_that_raises_is_left_out(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda _: 1 / 0
    assert list(prepare().nodes) == [1, 2]
    assert "failed to query.prepare: division by zero\n" in caplog.text


def test_a_failure_is_never_blamed_on_a_client_that_answered(
    prepare: Callable[[], Preparation], clients: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[0, "prepare"] = lambda _: 1 / 0
    prepare()
    assert "client 2 failed" not in caplog.text
    assert "node 1000 failed to query.prepare" in caplog.text


def test_nobody_left_is_an_error_with_a_reason(prepare: Callable[[], Preparation], clients: Any) -> None:
    for client in range(3):
        clients.misbehaviour[client, "prepare"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match=r"no client could prepare: .*division by zero"):
        prepare()
