"""What a client answers to each kind of message: reads it, calls trainer and evaluator, packs the reply.

Backbone, data and states are kept between messages, for as long as the process lives.
"""

from functools import lru_cache

import numpy as np
import torch
from flwr.app import Context, MessageType, RecordDict
from jaxtyping import Float

from client.adapter import AdaptedBackbone, Tuned
from client.error_feedback import change_to_send
from client.evaluator import evaluate
from client.gate_statistics import features, gate_inputs, second_moments, sums_by_cluster, sums_by_task
from client.gpu_memory import limit_gpu_memory, out_of_memory_message
from client.hand_written import with_hand_written_prompt
from client.measurer import measure
from client.partition_data import (
    PartitionData,
    TokenizedSplit,
    load_partition_data,
    load_pooled_training_data,
    longest_text,
)
from client.trainer import settings_of, train
from client.vocabulary import sampled_pool
from common.backbone import Backbone, load_backbone, resolve_device
from common.backbone_source import locate
from common.config import OWN_PARTITION, Config
from common.decoder import injection_layer, probe_kv_shapes
from common.fingerprint import fingerprint, tokenizer_hash, weights_hash
from common.injection import PromptedBackbone
from common.measures import Measured
from common.mixture import Mixture
from common.mixture_spec import MixtureSpec
from common.own_settings import own_config
from common.projection import projection
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
from common.wire.rounds import (
    EvaluateReply,
    Instruction,
    TrainReply,
    pack_evaluate_reply,
    pack_train_reply,
    read_instruction,
)


def answer(message_type: str, content: RecordDict, context: Context) -> RecordDict:
    """Return what a reply holds. Raises RuntimeError, one line in place of ten, where a GPU's memory is used up."""
    try:
        return ANSWERS[message_type](content, context)
    except torch.cuda.OutOfMemoryError as error:
        config = own_config(context.run_config, context.node_config)
        raise RuntimeError(out_of_memory_message(str(error), config)) from None


def forget(with_backbone: bool) -> None:
    """Let go of the data of runs that are over, and of their backbones, where the next has another."""
    load_partition_data.cache_clear()
    load_pooled_training_data.cache_clear()
    _gate_inputs.cache_clear()
    if with_backbone:
        load_backbone.cache_clear()


def _on_prepare(content: RecordDict, context: Context) -> RecordDict:
    """Tell the backbone's fingerprint and shapes, the gate's sums, the backbone's own scores, and what was cut."""
    config, partition, backbone, data = _open(context)
    layer = injection_layer(backbone, config.injection_layer)
    inputs = _gate_inputs(config, partition, backbone)
    sums, source = sums_by_task(inputs, data.train.examples), locate(config.backbone)
    reply = PrepareReply(
        partition=partition,
        fingerprint=_fingerprint(config, backbone, str(context.run_config["quantization"])),
        weights_hash=weights_hash(source),
        tokenizer_hash=tokenizer_hash(source),
        quantization=config.quantization,
        hidden_size=backbone.hidden_size,
        gate_input_size=inputs.shape[1],
        kv_shapes=probe_kv_shapes(backbone, layer),
        tasks=sums.tasks,
        domains=sums.domains,
        counts=sums.counts,
        sums=sums.sums,
        squares=sums.squares,
        scores=evaluate(backbone, data.evaluation.examples, data.evaluation.tokenized).scores,
        data_counts=data.counts,
        measured=_measured(config, backbone, backbone, data.evaluation),
    )
    return pack_prepare_reply(reply)


def _on_moments(content: RecordDict, context: Context) -> RecordDict:
    """Tell the second moments of the gate's input, standardised by the statistics of all clients."""
    projected = _features(context, read_instruction(content))
    return pack_moments(second_moments(projected))


def _on_clusters(content: RecordDict, context: Context) -> RecordDict:
    """Tell what is nearest to each of the server's centres: a step of federated k-means."""
    instruction = read_instruction(content)
    reply = sums_by_cluster(_features(context, instruction), instruction.arrays["centres"])
    return pack_cluster_reply(reply)


def _on_vocabulary(content: RecordDict, context: Context) -> RecordDict:
    """Make first prompts of sampled tokens; the server, which has no backbone, asks one client for them."""
    config, _, backbone, _ = _open(context)
    pool = sampled_pool(backbone, _spec(config, backbone, (), 0), np.random.default_rng(config.seed))
    return pack_pool(pool)


def _on_adapter(content: RecordDict, context: Context) -> RecordDict:
    """Draw the first adapter of a baseline; the server, which has no peft, asks one client for it."""
    config, _, backbone, _ = _open(context)
    with AdaptedBackbone(backbone, config, read_instruction(content).tasks) as adapted:
        return pack_adapter(adapted.spec.peft_card, adapted.arrays())


def _on_train(content: RecordDict, context: Context) -> RecordDict:
    """Train what the server sent, in a round or for the client's own use after the last; send it back."""
    config, partition, backbone, data = _open(context)
    instruction = read_instruction(content)
    examples, num_steps = data.train.tokenized, config.num_local_steps
    if instruction.server_round > config.num_rounds:
        num_steps = config.num_personal_steps
    elif config.centralised:
        examples, num_steps = load_pooled_training_data(config, backbone), num_steps * config.num_clients
    rng = np.random.default_rng([config.seed, instruction.server_round, partition])
    with _tuned(config, backbone, instruction) as tuned:
        result = train(tuned, examples, settings_of(config, num_steps), rng)
        arrays = tuned.trainee.trained_arrays()
    if config.wire_format == "int8":
        is_personal = instruction.server_round > config.num_rounds  # there is no change after it to add to
        state = RecordDict(dict(context.state)) if is_personal else context.state
        arrays = change_to_send(arrays, instruction.arrays, state, instruction.server_round)
    reply = TrainReply(
        arrays, result.loss, result.num_examples, result.usage, result.gate_entropy, result.task_examples
    )
    return pack_train_reply(reply, config.wire_format)


def _on_evaluate(content: RecordDict, context: Context) -> RecordDict:
    """Score what the server sent on the client's evaluation examples; after the last round, measure more."""
    config, _, backbone, data = _open(context)
    instruction = read_instruction(content)
    if config.method == "hand-written":
        reply = _evaluated(config, instruction, backbone, backbone, with_hand_written_prompt(config, data, backbone))
    else:
        with _tuned(config, backbone, instruction) as tuned:
            reply = _evaluated(config, instruction, tuned, backbone, data.evaluation)
    return pack_evaluate_reply(reply)


def _evaluated(
    config: Config, instruction: Instruction, model: Backbone | Tuned, backbone: Backbone, asked: TokenizedSplit
) -> EvaluateReply:
    found = evaluate(model, asked.examples, asked.tokenized)
    is_last = instruction.server_round == config.last_round
    return EvaluateReply(found.scores, found.expert_use, _measured(config, model, backbone, asked) if is_last else {})


def _measured(config: Config, model: Backbone | Tuned, backbone: Backbone, asked: TokenizedSplit) -> Measured:
    if not config.measure_names:
        return {}
    limits = config.measure_examples, config.max_answer_tokens, longest_text(config, backbone)
    return measure(model, asked.examples, asked.tokenized, config.measure_names, *limits)


def _open(context: Context) -> tuple[Config, int, Backbone, PartitionData]:
    """Read the configuration; load, or find loaded, the backbone and the client's own data."""
    config = own_config(context.run_config, context.node_config)
    partition = int(context.node_config["partition-id"])
    num_partitions = int(context.node_config["num-partitions"])
    if num_partitions != config.num_clients and config.partition != OWN_PARTITION:
        raise ValueError(
            f"num-clients is {config.num_clients}, but this node is one of {num_partitions}: make them agree"
        )
    limit_gpu_memory(resolve_device(config.device), config.gpu_memory_fraction, all_devices=config.device_map != "")
    backbone = load_backbone(
        config.backbone, config.quantization, config.device, config.compute_dtype, config.device_map
    )
    return config, partition, backbone, load_partition_data(config, partition, backbone)


def _fingerprint(config: Config, backbone: Backbone, quantization: str) -> str:
    """Return the backbone's fingerprint under the run's quantization, which a client need not share."""
    if config.quantization == quantization:
        return backbone.fingerprint
    return fingerprint(locate(config.backbone), quantization)


# Both exchanges before round 1 read them. 4 bytes x hidden size an example; a simulation of more clients computes anew.
@lru_cache(maxsize=64)
def _gate_inputs(config: Config, partition: int, backbone: Backbone) -> Float[np.ndarray, "examples hidden"]:
    data = load_partition_data(config, partition, backbone)
    read = [tokens.gate_input for tokens in data.train.tokenized if tokens.gate_input is not None]
    if read:
        return np.stack(read)
    return gate_inputs(backbone, injection_layer(backbone, config.injection_layer), data.train.tokenized)


def _features(context: Context, instruction: Instruction) -> Float[np.ndarray, "examples features"]:
    """Standardise the gate's inputs by the statistics that the server sent, and project them."""
    config, partition, backbone, _ = _open(context)
    mean, scale = instruction.arrays["gate.mean"], instruction.arrays["gate.scale"]
    inputs = _gate_inputs(config, partition, backbone)
    return features(inputs, mean, scale, projection(inputs.shape[1], config.seed))


def _spec(config: Config, backbone: Backbone, tasks: tuple[str, ...], gate_input_size: int) -> MixtureSpec:
    layer = injection_layer(backbone, config.injection_layer)
    return config.mixture_spec(backbone.hidden_size, probe_kv_shapes(backbone, layer), tasks, gate_input_size)


def _tuned(config: Config, backbone: Backbone, instruction: Instruction) -> PromptedBackbone | AdaptedBackbone:
    if config.method != "mixture":
        adapted = AdaptedBackbone(backbone, config, instruction.tasks)
        try:
            adapted.load_arrays(instruction.arrays)
        except BaseException:
            adapted.remove()  # the next message finds the same backbone
            raise
        return adapted
    gate_input_size = instruction.arrays["gate.mean"].size if "gate.mean" in instruction.arrays else 0
    mixture = Mixture(_spec(config, backbone, instruction.tasks, gate_input_size)).to(backbone.device)
    mixture.load_arrays(instruction.arrays)
    return PromptedBackbone(backbone, mixture)


ANSWERS = {
    f"query.{PREPARE}": _on_prepare,
    f"query.{MOMENTS}": _on_moments,
    f"query.{CLUSTERS}": _on_clusters,
    f"query.{VOCABULARY}": _on_vocabulary,
    f"query.{ADAPTER}": _on_adapter,
    MessageType.TRAIN: _on_train,
    MessageType.EVALUATE: _on_evaluate,
}
