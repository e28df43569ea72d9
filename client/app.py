"""The ClientApp: reads messages, calls trainer and evaluator, replies."""

from functools import lru_cache

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from jaxtyping import Float

from client.evaluator import evaluate
from client.gate_statistics import gate_inputs, second_moments, sums_by_task
from client.partition_data import PartitionData, load_partition_data
from client.trainer import TrainSettings, train
from common.backbone import Backbone, load_backbone
from common.config import Config, read_config
from common.injection import PromptedBackbone, injection_layer, probe_kv_shapes
from common.mixture import Mixture
from common.mixture_arrays import Arrays, MixtureShape
from common.projection import projection
from common.wire import (
    MOMENTS,
    PREPARE,
    PrepareReply,
    TrainReply,
    pack_moments,
    pack_prepare_reply,
    pack_scores,
    pack_train_reply,
    read_instruction,
)

app = ClientApp()


@app.query(PREPARE)
def on_prepare(message: Message, context: Context) -> Message:
    """Tell the backbone's fingerprint and shapes, the gate's sums, and the scores of the backbone alone."""
    config, partition, backbone, data = _open(context)
    layer = injection_layer(backbone, config.injection_layer)
    sums = sums_by_task(_gate_inputs(config, partition, backbone), data.train.examples)
    reply = PrepareReply(
        partition=partition,
        fingerprint=backbone.fingerprint,
        hidden_size=backbone.hidden_size,
        kv_shapes=probe_kv_shapes(backbone, layer),
        tasks=sums.tasks,
        domains=sums.domains,
        counts=sums.counts,
        sums=sums.sums,
        squares=sums.squares,
        scores=evaluate(backbone, data.evaluation.examples, data.evaluation.tokenized),
    )
    return Message(pack_prepare_reply(reply), reply_to=message)


@app.query(MOMENTS)
def on_moments(message: Message, context: Context) -> Message:
    """Tell the second moments of the gate's input, standardised by the statistics of all clients."""
    config, partition, backbone, _ = _open(context)
    _, statistics = read_instruction(message.content)
    inputs = _gate_inputs(config, partition, backbone)
    moments = second_moments(
        inputs, statistics["gate.mean"], statistics["gate.scale"], projection(backbone.hidden_size, config.seed)
    )
    return Message(pack_moments(moments), reply_to=message)


@app.train()
def on_train(message: Message, context: Context) -> Message:
    """Train the mixture that the server sent; send it back with the use of its experts."""
    config, partition, backbone, data = _open(context)
    server_round, arrays = read_instruction(message.content)
    settings = TrainSettings(
        num_steps=config.num_local_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        gate_learning_rate=config.gate_learning_rate,
        balance_weight=config.balance_weight,
    )
    rng = np.random.default_rng([config.seed, server_round, partition])
    with _prompted(config, backbone, arrays) as prompted:
        result = train(prompted, data.train.tokenized, settings, rng)
    reply = TrainReply(
        prompted.mixture.trained_arrays(), result.loss, result.num_examples, result.usage, result.gate_entropy
    )
    return Message(pack_train_reply(reply), reply_to=message)


@app.evaluate()
def on_evaluate(message: Message, context: Context) -> Message:
    """Score the mixture that the server sent on the client's evaluation examples."""
    config, _, backbone, data = _open(context)
    _, arrays = read_instruction(message.content)
    with _prompted(config, backbone, arrays) as prompted:
        scores = evaluate(prompted, data.evaluation.examples, data.evaluation.tokenized)
    return Message(pack_scores(scores), reply_to=message)


def _open(context: Context) -> tuple[Config, int, Backbone, PartitionData]:
    """Read the configuration; load, or find loaded, the backbone and the client's own data."""
    config = read_config(context.run_config)
    partition = int(context.node_config["partition-id"])
    num_partitions = int(context.node_config["num-partitions"])
    if num_partitions != config.num_clients:
        raise ValueError(
            f"num-clients is {config.num_clients}, but this node is one of {num_partitions}: make them agree"
        )
    backbone = load_backbone(config.backbone, config.quantization, config.device)
    return config, partition, backbone, load_partition_data(config, partition, backbone)


# Both exchanges before round 1 read them. 4 bytes x hidden size an example; a simulation of more clients computes anew.
@lru_cache(maxsize=64)
def _gate_inputs(config: Config, partition: int, backbone: Backbone) -> Float[np.ndarray, "examples hidden"]:
    data = load_partition_data(config, partition, backbone)
    return gate_inputs(backbone, injection_layer(backbone, config.injection_layer), data.train.tokenized)


def _prompted(config: Config, backbone: Backbone, arrays: Arrays) -> PromptedBackbone:
    layer = injection_layer(backbone, config.injection_layer)
    shape = MixtureShape(
        config.num_experts,
        config.tokens_per_expert,
        config.gate_hidden_size,
        backbone.hidden_size,
        probe_kv_shapes(backbone, layer),
    )
    mixture = Mixture(shape, config.temperature).to(backbone.device)
    mixture.load_arrays(arrays)
    return PromptedBackbone(backbone, mixture)
