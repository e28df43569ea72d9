"""A message of every kind, and the readers that need to be told what to expect."""

import numpy as np

from common.data_counts import CutCounts, DataCounts
from common.measures import MeasureSum
from common.mixture_arrays import initial_arrays
from common.mixture_spec import MixtureSpec
from common.perplexity import AnswerScore
from common.wire.preparation import ClusterReply, PrepareReply, unpack_adapter, unpack_cluster_reply, unpack_pool
from common.wire.rounds import EvaluateReply, TrainReply, unpack_evaluate_reply

SPEC = MixtureSpec(3, 4, 5, 6, {2: (2, 8, 7), 3: (2, 8, 7)})
ARRAYS = initial_arrays(SPEC, np.random.default_rng(0))
SCORES = {"b": AnswerScore(1.5, 2, 3, 4), "a": AnswerScore(0.0, 1, 1, 1)}
MEASURED = {
    "b": {"rouge-l": MeasureSum(0.75, 3), "choice-accuracy": MeasureSum(0.0, 1)},
    "a": {"rouge-l": MeasureSum(1.0, 1)},
}
DATA_COUNTS = DataCounts(CutCounts(9, 1, 1, 2), CutCounts(7, 2, 0, 5), num_bad_rows=3, is_own=True)


def train_reply():
    return TrainReply(ARRAYS, 1.25, 40, np.array([30.0, 9.5, 0.5]), 0.75, np.array([39.0, 1.0]))


def evaluate_reply():
    use = {"a": np.array([0.5, 0.25, 0.25]), "b": np.array([0.0, 1.0, 0.0])}
    return EvaluateReply(SCORES, use, MEASURED)


def cluster_reply():
    return ClusterReply(np.array([3.0, 0.0]), np.arange(6.0).reshape(2, 3) / 7, 1.5)


def read_use(content):
    return unpack_evaluate_reply(content, 3)


def read_clusters(content):
    return unpack_cluster_reply(content, 2, 3)


def read_pool(content):
    return unpack_pool(content, SPEC.pool())


def prepare_reply():
    counts, sums = np.array([3.0, 4.0]), np.random.default_rng(0).normal(size=(2, 6))
    kv_shapes = {3: (2, 8, 7), 2: (1, 4, 4)}
    sizes = 6, 6, kv_shapes
    statistics = ["a", "b"], ["x", "y"], counts, sums, sums**2
    return PrepareReply(5, "abc", "def", "123", "nf4", *sizes, *statistics, SCORES, DATA_COUNTS, MEASURED)


CARD = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 2, "tokenizer_kwargs": None, "list": [1], "map": {"a": 1}}
ADAPTER_ARRAYS = {
    "prefix_task_cols": np.arange(6, dtype=np.float32).reshape(2, 3, 1),
    "prefix_task_rows": np.ones((2, 1, 4), np.float32),
    "prompt_embeddings": np.zeros((3, 4), np.float32),
}


def read_adapter(content):
    return unpack_adapter(content, "multitask-prompt-tuning", ["a", "b"])
