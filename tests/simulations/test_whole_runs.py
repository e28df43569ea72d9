"""Whole runs of the real apps on a tiny backbone: deterministic, true to centralised training, robust to clients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from client.app import app as client_app
from client.partition_data import load_partition_data
from client.trainer import TrainSettings, train
from common.backbone import load_backbone
from common.config import read_config
from common.decoder import injection_layer, probe_kv_shapes
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import Arrays
from common.mixture_file import WEIGHTS, read_mixture
from common.mixture_spec import MixtureSpec
from common.partition import partitions_of
from common.wire.rounds import read_instruction, unpack_train_reply
from server.aggregation import WeightedMean
from server.app import app as server_app
from simulations.inline import run_inline
from simulations.simulate import Engine, simulate

RunConfig = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")


def run(run_config: dict[str, Any], app: ClientApp = client_app) -> Path:
    run_inline(server_app, app, run_config, run_config["num-clients"])
    return Path(run_config["run-directory"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rounds(directory: Path) -> list[dict[str, Any]]:
    """Read the lines of the rounds of training; the first line is what came before."""
    return lines(directory / "rounds.jsonl")[1:]


def mixture_bytes(directory: Path) -> bytes:
    return (directory / WEIGHTS).read_bytes()


def without_seconds(directory: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in lines(directory / "rounds.jsonl")
    ]


# --- The same seed gives the same run ---


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_same_seed_gives_the_same_run_to_the_bit(run_config: RunConfig, tmp_path: Path, quantization: str) -> None:
    load_backbone.cache_clear()
    first = run(run_config(run_directory=str(tmp_path / "1"), quantization=quantization))
    load_backbone.cache_clear()  # nor may it matter that the backbone has been used
    again = run(run_config(run_directory=str(tmp_path / "2"), quantization=quantization))
    assert mixture_bytes(first) == mixture_bytes(again)
    for name in ("metrics.jsonl", "result.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert without_seconds(first) == without_seconds(again)


def test_another_seed_gives_another_run(run_config: RunConfig, tmp_path: Path) -> None:
    first, other = (run(run_config(run_directory=str(tmp_path / str(seed)), seed=seed)) for seed in (0, 1))
    assert mixture_bytes(first) != mixture_bytes(other)


def test_a_run_with_one_expert_has_no_gate(run_config: RunConfig) -> None:
    directory = run(run_config(num_experts=1))
    assert {*read_mixture(directory).arrays} == {"pool.keys.1", "pool.values.1"}
    assert not any({"expert_use", "gate_entropy"} & line.keys() for line in rounds(directory))


def test_training_lowers_the_loss(run_config: RunConfig) -> None:
    losses = [line["loss"] for line in rounds(run(run_config(num_rounds=5, num_local_steps=8)))]
    assert losses[-1] < losses[0]


def test_metrics_have_a_line_for_each_round_client_task_and_phase(run_config: RunConfig) -> None:
    run_config_ = run_config()
    directory = run(run_config_)
    config = read_config(run_config_)
    evaluated = [
        (client, task)
        for client, owned in enumerate(partitions_of(config))
        for task in sorted({example.task for example in owned if example.split == "test"})
    ]
    expected = [(0, "backbone", client, task) for client, task in evaluated]
    for server_round in (1, 2):
        expected += [(server_round, "train", client, None) for client in range(3)]
        expected += [(server_round, "mixture", client, task) for client, task in evaluated]
    found = [
        (each["round"], each["phase"], each["client"], each.get("task")) for each in lines(directory / "metrics.jsonl")
    ]
    assert found == expected


# --- One client is centralised training ---


def test_one_client_with_one_step_a_round_is_centralised_training_to_the_bit(run_config: RunConfig) -> None:
    num_rounds = 4
    settings = run_config(num_clients=1, num_rounds=num_rounds, num_local_steps=1)
    sent: list[Arrays] = []

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            sent.append(read_instruction(message.content).arrays)
        return client_app(message, context)

    directory = run(settings, app)  # type: ignore[arg-type]

    config = read_config(settings)
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    data = load_partition_data(config, 0, backbone)
    spec = MixtureSpec(
        config.num_experts,
        config.tokens_per_expert,
        config.gate_hidden_size,
        backbone.hidden_size,
        probe_kv_shapes(backbone, injection_layer(backbone, config.injection_layer)),
    )
    mixture = Mixture(spec)
    mixture.load_arrays(sent[0])
    prompted = PromptedBackbone(backbone, mixture)
    train_settings = TrainSettings(
        1, config.batch_size, config.learning_rate, config.gate_learning_rate, config.balance_weight
    )
    losses = []
    for server_round in range(1, num_rounds + 1):  # one mixture that never leaves; as on a client, a new AdamW a round
        rng = np.random.default_rng([config.seed, server_round, 0])
        losses.append(train(prompted, data.train.tokenized, train_settings, rng).loss)
    prompted.remove()

    federated = read_mixture(directory).arrays
    for name, array in mixture.trained_arrays().items():
        np.testing.assert_array_equal(federated[name], array, err_msg=name)
    assert [line["loss"] for line in rounds(directory)] == losses


# --- Clients that misbehave ---


class Wrapped:
    """The real ClientApp, but one client's replies to train messages of one round go through `spoil`."""

    def __init__(self, client: int, server_round: int, spoil: Callable[[Message], Message]) -> None:
        self.updates: list[tuple[int, int, Message]] = []
        self._where, self._spoil = (client, server_round), spoil

    def __call__(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        reply = client_app(message, context)
        if message.metadata.message_type != "train":
            return reply
        server_round = message.content.config_records["config"]["server-round"]
        if (client, server_round) == self._where:
            return self._spoil(reply)
        self.updates.append((server_round, client, reply))
        return reply


def change_array(reply: Message, change: Callable[[np.ndarray], np.ndarray]) -> Message:
    record = reply.content.array_records["arrays"]
    reply.content["arrays"] = ArrayRecord({**record, "pool.keys.1": Array(change(record["pool.keys.1"].numpy()))})
    return reply


def drop_array(reply: Message) -> Message:
    del reply.content.array_records["arrays"]["gate.hidden.bias"]
    return reply


def drop_metric(reply: Message) -> Message:
    del reply.content.metric_records["metrics"]["usage"]
    return reply


def fail(reply: Message) -> Message:
    raise OSError("the disk is full")


MISBEHAVIOUR: dict[str, tuple[Callable[[Message], Message], str]] = {
    "NaN": (lambda reply: change_array(reply, lambda a: a * np.float32(np.nan)), "pool.keys.1 holds values that are"),
    "shape": (lambda reply: change_array(reply, lambda a: a[:2]), r"pool.keys.1 has shape [2, 2, 1, 8], expected [3, "),
    "dtype": (lambda reply: change_array(reply, lambda a: a.astype(np.float64)), "pool.keys.1 is float64"),
    "no array": (drop_array, "array gate.hidden.bias is missing"),
    "no metric": (drop_metric, "reply rejected: 'usage'"),
    "raises": (fail, "the disk is full"),
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_the_run_goes_on_as_if_a_bad_update_had_not_been_sent(
    run_config: RunConfig, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = MISBEHAVIOUR[what]
    app = Wrapped(client=1, server_round=1, spoil=spoil)
    directory = run(run_config(), app)  # type: ignore[arg-type]

    first, second = rounds(directory)
    assert list(first["failed"]["train"]) == ["1"]
    assert reason in first["failed"]["train"]["1"]
    assert f"client 1 failed to train: {first['failed']['train']['1']}" in caplog.text
    assert (first["num_clients_trained"], first["num_clients_evaluated"]) == (2, 3)
    assert second["failed"] == {"train": {}, "evaluate": {}}
    assert (directory / "result.json").exists()
    assert [(number, client) for number, client, _ in app.updates] == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]

    # The reference: what only the others sent, merged. Each expert was used, so the first mixture does not matter.
    expected = read_mixture(directory).arrays
    mean = WeightedMean()
    for server_round, _, reply in app.updates:
        if server_round == 2:
            mean.add(unpack_train_reply(reply.content))
    for name, array in mean.merge_into(expected).items():
        np.testing.assert_array_equal(expected[name], array, err_msg=name)


def test_the_mixture_after_a_bad_update_is_that_of_the_others(run_config: RunConfig, tmp_path: Path) -> None:
    spoil, _ = MISBEHAVIOUR["NaN"]
    bad = run(run_config(num_rounds=1, run_directory=str(tmp_path / "bad")), Wrapped(1, 1, spoil))  # type: ignore[arg-type]
    app = Wrapped(client=1, server_round=0, spoil=fail)  # a round that never comes: nobody misbehaves
    good = run(run_config(num_rounds=1, run_directory=str(tmp_path / "good")), app)  # type: ignore[arg-type]
    mean = WeightedMean()
    for _, client, reply in app.updates:
        if client != 1:
            mean.add(unpack_train_reply(reply.content))
    found, whole = read_mixture(bad).arrays, read_mixture(good).arrays
    for name, array in mean.merge_into(whole).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (found["pool.keys.1"] != whole["pool.keys.1"]).any()


def test_a_client_with_another_quantization_is_left_out_by_name(
    run_config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            context.run_config["quantization"] = "nf4"
        return client_app(message, context)

    directory = run(run_config(), app)  # type: ignore[arg-type]
    assert "client 2 is left out: its fingerprint under the run's quantization differs " in caplog.text
    assert [row["client"] for row in json.loads((directory / "result.json").read_text())["clients"]] == [0, 1]
    assert {line["num_clients_evaluated"] for line in rounds(directory)} == {2}


def test_a_loss_that_is_not_finite_on_all_clients_ends_the_run(run_config: RunConfig, tmp_path: Path) -> None:
    # Logits divided by next to nothing overflow.
    with pytest.raises(RuntimeError, match=r"round 1: no client sent .* client 0: .*training diverged"):
        run(run_config(temperature=1e-40, gate_pretraining="none"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_half_of_the_clients_train_in_a_round_and_others_in_the_next(run_config: RunConfig, tmp_path: Path) -> None:
    half = {"client_fraction": 0.5, "num_clients": 4, "num_rounds": 4}
    first, again = (run(run_config(run_directory=str(tmp_path / name), **half)) for name in ("1", "2"))
    by_round: dict[int, list[int]] = {}
    for line in lines(first / "metrics.jsonl"):
        if line["phase"] == "train":
            by_round.setdefault(line["round"], []).append(line["client"])
    assert [len(trained) for trained in by_round.values()] == [2] * 4
    assert len({tuple(trained) for trained in by_round.values()}) > 1
    assert mixture_bytes(first) == mixture_bytes(again)


# --- The engines agree ---


@pytest.mark.slow
def test_inline_and_ray_give_the_same_run_to_the_bit(
    run_config: RunConfig, small_run: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"num_clients": 2, "num_rounds": 2}
    inline = run(run_config(run_directory=str(tmp_path / "inline"), **changes))
    words = [f"{key}={value}" for key, value in small_run.items()]
    words += ["num-clients=2", "num-rounds=2", f"run-directory={tmp_path / 'ray'}"]
    ray = simulate(words, Engine.RAY, 1, 0.0, Console(quiet=True))
    assert mixture_bytes(inline) == mixture_bytes(ray)
    assert without_seconds(inline) == without_seconds(ray)

    def in_order(directory: Path) -> list[str]:
        return sorted((directory / "metrics.jsonl").read_text().splitlines())

    assert in_order(inline) == in_order(ray)
    assert (inline / "result.json").read_bytes() == (ray / "result.json").read_bytes()


@pytest.mark.parametrize("method", ["mixture", "lora"])
def test_fewer_bytes_on_the_wire_cost_hardly_any_perplexity(run_config: RunConfig, tmp_path: Path, method: str) -> None:
    last = {}
    for wire_format in ("float32", "float16", "int8"):
        settings = {"wire_format": wire_format, "run_directory": str(tmp_path / wire_format), "method": method}
        last[wire_format] = rounds(run(run_config(**settings, num_rounds=3, num_local_steps=6, gate_hidden_size=64)))[
            -1
        ]
    whole = last["float32"]
    for wire_format in ("float16", "int8"):
        assert last[wire_format]["perplexity"] == pytest.approx(whole["perplexity"], rel=0.01)
        assert last[wire_format]["perplexity"] != whole["perplexity"]
