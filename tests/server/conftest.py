"""A federation without a backbone: clients whose answers are known, and who misbehave as told."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from numpy.typing import NDArray

from client.gate_statistics import sums_by_cluster
from common.adapter_spec import AdapterSpec
from common.backbone_source import distribution_root
from common.config import Config, default_run_config, read_config
from common.data_counts import CutCounts, DataCounts
from common.measures import MeasureSum, read_measures
from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec, Spec
from common.perplexity import AnswerScore
from common.wire.preparation import (
    ADAPTER,
    CLUSTERS,
    MOMENTS,
    PREPARE,
    VOCABULARY,
    PrepareReply,
    pack_adapter,
    pack_cluster_reply,
    pack_moments,
    pack_pool,
    pack_prepare_reply,
)
from common.wire.rounds import EvaluateReply, TrainReply, pack_evaluate_reply, pack_train_reply, read_instruction
from server.run_directory import RunDirectory
from simulations.inline import InlineGrid

SPEC = MixtureSpec(
    num_experts=3, tokens_per_expert=2, gate_hidden_size=4, hidden_size=5, kv_shapes={1: (2, 4, 6), 2: (1, 4, 4)}
)
FINGERPRINT, WEIGHTS, TOKENIZER = "5a" * 16, "7e" * 16, "70" * 16
NUM_EXAMPLES = 8
USAGE = ([8.0, 0.0, 0.0], [2.0, 6.0, 0.0], [1.0, 3.0, 4.0])  # of client, by expert


class FakeClients:
    """A ClientApp that adds client + 1 to all it is sent and scores a perplexity of exp(client + 1).

    If anything is measured, the backbone has 0.25 of it and the mixture of the last round (4 + client) / 8.

    `misbehaviour[client, phase]` (prepare, moments, clusters, vocabulary, adapter, train or evaluate) gets the right
    reply and returns what is sent in its place, or raises.
    """

    def __init__(self) -> None:
        self.app = ClientApp()
        self.spec: Spec = SPEC
        self.calls: list[tuple[str, int, int]] = []  # phase, round, client
        self.sent: dict[tuple[str, int, int], Arrays] = {}  # in rounds, by call
        self.misbehaviour: dict[tuple[int, str], Callable[[Any], Any]] = {}
        self.app.query(PREPARE)(self._prepare)
        self.app.query(MOMENTS)(self._moments)
        self.app.query(CLUSTERS)(self._clusters)
        self.app.query(VOCABULARY)(self._vocabulary)
        self.app.query(ADAPTER)(self._adapter)
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def _answer(self, phase: str, server_round: int, client: int, reply: Any, pack: Callable[[Any], RecordDict]) -> Any:
        self.calls.append((phase, server_round, client))
        if (client, phase) in self.misbehaviour:
            reply = self.misbehaviour[client, phase](reply)
        return reply if isinstance(reply, RecordDict) else pack(reply)

    def _prepare(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        names = read_measures(str(context.run_config.get("measures", "")))
        tasks, inputs = [f"task {client}", "shared"], _gate_inputs(client)
        reply = PrepareReply(
            partition=client,
            fingerprint=FINGERPRINT,
            weights_hash=WEIGHTS,
            tokenizer_hash=TOKENIZER,
            quantization="none",
            hidden_size=SPEC.hidden_size,
            gate_input_size=SPEC.hidden_size,
            kv_shapes=dict(SPEC.kv_shapes),
            tasks=tasks,
            domains=["text", "text"],
            counts=np.full(2, float(NUM_EXAMPLES)),
            sums=inputs.sum(axis=1),
            squares=(inputs**2).sum(axis=1),
            scores={task: AnswerScore(10.0 * (client + 2), 10, 20, 2) for task in tasks},
            data_counts=DataCounts(CutCounts(2 * NUM_EXAMPLES + 1, 1, 0, 3), CutCounts(6, 0, 2, 1), num_bad_rows=5),
            measured={task: {name: MeasureSum(0.5, 2) for name in names} for task in tasks if names},
        )
        return Message(self._answer("prepare", 0, client, reply, pack_prepare_reply), reply_to=message)

    def _moments(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        inputs = _standardised(client, read_instruction(message.content).arrays)
        reply = (inputs.T @ inputs).astype(np.float32)
        return Message(self._answer("moments", 0, client, reply, pack_moments), reply_to=message)

    def _clusters(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        sent = read_instruction(message.content).arrays
        reply = sums_by_cluster(_standardised(client, sent), sent["centres"])
        return Message(self._answer("clusters", 0, client, reply, pack_cluster_reply), reply_to=message)

    def _vocabulary(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        reply = {name: np.full(shape, 7.0, np.float32) for name, shape in SPEC.pool().items()}
        return Message(self._answer("vocabulary", 0, client, reply, pack_pool), reply_to=message)

    def _adapter(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        assert isinstance(self.spec, AdapterSpec)
        reply = {name: np.full(shape, 7.0, np.float32) for name, shape in self.spec.shapes.items()}
        card = self.spec.peft_card

        def pack(arrays: Arrays) -> RecordDict:
            return pack_adapter(card, arrays)

        return Message(self._answer("adapter", 0, client, reply, pack), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        sent = read_instruction(message.content)
        _check_shapes(sent.arrays, self.spec)
        self.sent["train", sent.server_round, client] = sent.arrays
        trained = {name: sent.arrays[name] + np.float32(client + 1) for name in self.spec.trainable()}
        of_tasks = np.array([NUM_EXAMPLES / 2 * (task in (f"task {client}", "shared")) for task in self.spec.tasks])
        reply = TrainReply(trained, 1.0 + client, NUM_EXAMPLES, self._usage(client), 0.5, of_tasks)
        return Message(self._answer("train", sent.server_round, client, reply, pack_train_reply), reply_to=message)

    def _usage(self, client: int) -> NDArray[np.float64]:
        return np.array(USAGE[client % 3] if self.spec.num_experts == 3 else [float(NUM_EXAMPLES)])

    @staticmethod
    def gate_inputs(client: int) -> NDArray[np.float64]:
        """Return a client's inputs of the gate, `[tasks, examples, hidden]`."""
        return _gate_inputs(client)

    def evaluation(self, client: int) -> EvaluateReply:
        """Build what a client says of any mixture: its one task's score and use of the experts."""
        task, use = f"task {client}", self._usage(client) / NUM_EXAMPLES
        return EvaluateReply({task: AnswerScore(10.0 * (client + 1), 10, 20, 2)}, {task: use})

    def _evaluate(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        sent = read_instruction(message.content)
        _check_shapes(sent.arrays, self.spec)
        self.sent["evaluate", sent.server_round, client] = sent.arrays
        reply = self.evaluation(client)
        names = read_measures(str(context.run_config.get("measures", "")))
        if names and sent.server_round == context.run_config["num-rounds"]:
            measured = {task: {name: MeasureSum(1 + client / 4, 2) for name in names} for task in reply.scores}
            reply = replace(reply, measured=measured)
        return Message(
            self._answer("evaluate", sent.server_round, client, reply, pack_evaluate_reply), reply_to=message
        )


def _gate_inputs(client: int) -> NDArray[np.float64]:
    """Draw a client's inputs of the gate, `[tasks, examples, hidden]`: each task far off on an axis of its own."""
    inputs = np.random.default_rng(client).normal(size=(2, NUM_EXAMPLES, SPEC.hidden_size))
    inputs[0, :, client % 3] += 6.0
    inputs[1, :, 3] += 6.0
    return inputs


def _standardised(client: int, sent: Arrays) -> NDArray[np.float64]:
    inputs = _gate_inputs(client).reshape(-1, SPEC.hidden_size)
    standardised: NDArray[np.float64] = (inputs - sent["gate.mean"]) / sent["gate.scale"]
    return standardised


def _check_shapes(arrays: Arrays, spec: Spec) -> None:
    if {name: array.shape for name, array in arrays.items()} != spec.all():
        raise ValueError("the mixture does not fit the backbone")


@pytest.fixture
def spec() -> MixtureSpec:
    return SPEC


@pytest.fixture
def clients() -> FakeClients:
    return FakeClients()


@pytest.fixture
def run_config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that builds a small run's run_config; a key may be given with underscores."""

    def build(**changes: Any) -> dict[str, Any]:
        small = {
            "num-clients": 3,
            "num-rounds": 2,
            "num-experts": SPEC.num_experts,
            "tokens-per-expert": SPEC.tokens_per_expert,
            "gate-hidden-size": SPEC.gate_hidden_size,
            "run-directory": str(tmp_path / "run"),
        }
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        return default_run_config(distribution_root()) | small | named

    return build


@pytest.fixture
def config(run_config: Callable[..., dict[str, Any]]) -> Config:
    return read_config(run_config())


@pytest.fixture
def directory(tmp_path: Path, config: Config) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "run", config)
    yield directory
    directory.close()


class FakeNetwork(InlineGrid):
    """Delivers all waiting replies at once, last first; nothing of the clients in `silent`.

    The nodes of the clients in `offline` are not there, those in `started` were started at that time. As Flower does
    for a node that died, it sends errors in the name of node 1.
    """

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        super().__init__(client_app, {}, num_clients)
        self.nodes = dict(enumerate(super().get_node_ids()))
        self.silent: set[int] = set()
        self.offline: set[int] = set()
        self.started: dict[int, datetime] = {}
        self.received: list[Message] = []
        self._node_of: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        ids = super().push_messages(messages)
        self._node_of |= {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        return ids

    def get_node_ids(self) -> list[int]:
        offline = {self.nodes[client] for client in self.offline}
        return [node for node in super().get_node_ids() if node not in offline]

    def get_nodes(self) -> list[NodeInfo]:
        started = {self.nodes[client]: when.isoformat() for client, when in self.started.items()}
        return [NodeInfo(node_id=node, last_activated_at=started.get(node, "")) for node in self.get_node_ids()]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        silent = {self.nodes[client] for client in self.silent}
        wanted = [message_id for message_id in message_ids if self._node_of[message_id] not in silent]
        offline = {self.nodes[client] for client in self.offline}
        replies = []
        for message_id in wanted:
            if message_id in self._queue and self._node_of[message_id] in offline:
                gone = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
                replies.append(Message(gone, reply_to=self._queue.pop(message_id)))
            else:
                replies += InlineGrid.pull_messages(self, [message_id])
        for reply in replies:
            if reply.has_error():
                reply.metadata.__dict__["_src_node_id"] = 1
        self.received += replies
        return replies[::-1]


@pytest.fixture
def network(clients: FakeClients) -> FakeNetwork:
    return FakeNetwork(clients.app, 3)
