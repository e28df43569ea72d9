"""The bytes that a run sends: its own messages, packed as the wire packs them, with other values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from common.adapter_spec import AdapterSpec
from common.config import VOCABULARY_INIT, Config
from common.data_counts import DataCounts
from common.mixture_arrays import Arrays
from common.mixture_spec import GATE_STATISTICS
from common.perplexity import AnswerScore
from common.projection import MAX_FEATURES
from common.wire.message_bytes import message_bytes
from common.wire.preparation import (
    ClusterReply,
    PrepareReply,
    pack_adapter,
    pack_cluster_reply,
    pack_moments,
    pack_pool,
    pack_prepare_reply,
)
from common.wire.rounds import EvaluateReply, TrainReply, instruction, pack_evaluate_reply, pack_train_reply
from server.clusters import MAX_STEPS
from server.strategy import num_trainers
from simulations.planning.client_data import ClientData
from simulations.planning.shape import Shape

HASH_CHARACTERS = 32


@dataclass(frozen=True)
class Traffic:
    """Bytes, with the headers that Flower gives records and arrays: a client's messages, and all of a run."""

    num_trainers: int  # clients that train in a round
    to_train: int  # what the server sends a client that trains
    update: int  # what that client sends back
    to_evaluate: int
    scores: int
    before_round_1: int  # all clients, both ways
    run: int  # all clients and rounds, both ways


def plan_traffic(config: Config, shape: Shape, clients: Sequence[ClientData]) -> Traffic:
    """Plan what a run sends, when no client fails: scores are of the client with the most tasks."""
    spec = shape.spec
    everything = _stand_ins(spec.all())
    down = message_bytes(instruction(1, everything, spec.tasks, config.wire_format))
    update = TrainReply(
        {name: everything[name] for name in spec.trainable()},
        0.0,
        0,
        np.zeros(spec.num_experts),
        0.0,
        np.zeros(len(spec.tasks)),
    )
    up = message_bytes(pack_train_reply(update, config.wire_format))
    scores = [message_bytes(_scores(client.evaluated, spec.num_experts)) for client in clients]
    trainers = 1 if config.centralised else num_trainers(config.client_fraction, len(clients))
    a_round = (down + up) * trainers * bool(spec.trainable()) + down * len(clients) + sum(scores)
    personal = (down + up + down) * len(clients) + sum(scores) if config.num_personal_steps else 0
    before = _before_round_1(config, shape, everything, clients)
    return Traffic(trainers, down, up, down, max(scores), before, before + config.last_round * a_round + personal)


def _before_round_1(config: Config, shape: Shape, everything: Arrays, clients: Sequence[ClientData]) -> int:
    spec, greeting = shape.spec, message_bytes(instruction(0))
    total = sum(greeting + message_bytes(_introduction(config, shape, client)) for client in clients)
    if isinstance(spec, AdapterSpec):
        if spec.shapes:
            tasks = sorted({task for client in clients for task in client.trained})
            total += message_bytes(instruction(0, tasks=tasks))
            total += message_bytes(pack_adapter(spec.peft_card, everything))
        return total
    if config.prompt_init == VOCABULARY_INIT:
        total += greeting + message_bytes(pack_pool({name: everything[name] for name in spec.pool()}))
    if spec.has_gate and config.gate_pretraining != "none":
        features = min(shape.gate_input_size, MAX_FEATURES)
        statistics = {name: everything[name] for name in GATE_STATISTICS}
        moments = message_bytes(pack_moments(np.zeros((features, features), dtype=np.float32)))
        total += (message_bytes(instruction(0, statistics)) + moments) * len(clients)
        if config.gate_pretraining == "kmeans":
            centres = np.zeros((spec.num_gated, features))
            asked = message_bytes(instruction(0, statistics | {"centres": centres.astype(np.float32)}))
            reply = message_bytes(pack_cluster_reply(ClusterReply(np.zeros(spec.num_gated), centres, 0.0)))
            total += MAX_STEPS * (asked + reply) * len(clients)
    return total


def _introduction(config: Config, shape: Shape, client: ClientData) -> RecordDict:
    sums = np.zeros((len(client.trained), shape.gate_input_size))
    return pack_prepare_reply(
        PrepareReply(
            partition=0,
            fingerprint="0" * HASH_CHARACTERS,
            weights_hash="0" * HASH_CHARACTERS,
            tokenizer_hash="0" * HASH_CHARACTERS,
            data_counts=DataCounts(),
            quantization=config.quantization,
            hidden_size=shape.hidden_size,
            gate_input_size=shape.gate_input_size,
            kv_shapes=dict(shape.kv_shapes),
            tasks=list(client.trained),
            domains=list(client.trained),
            counts=np.zeros(len(client.trained)),
            sums=sums,
            squares=sums + 1.0,  # Flower sends equal arrays once
            scores=dict.fromkeys(client.evaluated, AnswerScore(1.0, 1, 1, 1)),
        )
    )


def _scores(tasks: Sequence[str], num_experts: int) -> RecordDict:
    scores = dict.fromkeys(tasks, AnswerScore(1.0, 1, 1, 1))
    return pack_evaluate_reply(EvaluateReply(scores, {task: np.zeros(num_experts) for task in tasks}))


def _stand_ins(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Return arrays that differ: Flower sends equal ones once."""
    return {name: np.full(shape, number, np.float32) for number, (name, shape) in enumerate(shapes.items())}
