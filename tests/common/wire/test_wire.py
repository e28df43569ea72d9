"""Messages: what is packed comes out, and weighs what it should."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from messages import (
    ADAPTER_ARRAYS,
    ARRAYS,
    CARD,
    MEASURED,
    SCORES,
    SPEC,
    cluster_reply,
    evaluate_reply,
    prepare_reply,
    read_adapter,
    read_clusters,
    read_pool,
    read_use,
    train_reply,
)

from common.mixture_spec import num_parameters
from common.wire.message_bytes import message_bytes
from common.wire.preparation import (
    pack_adapter,
    pack_cluster_reply,
    pack_moments,
    pack_pool,
    pack_prepare_reply,
    unpack_adapter,
    unpack_moments,
    unpack_prepare_reply,
)
from common.wire.records import (
    pack_arrays,
    pack_measured,
    pack_scores,
    unpack_arrays,
    unpack_measured,
    unpack_scores,
)
from common.wire.rounds import (
    TrainReply,
    instruction,
    pack_evaluate_reply,
    pack_train_reply,
    read_instruction,
    unpack_train_reply,
)


def assert_same_arrays(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array)


def test_arrays_come_out_as_they_went_in():
    odd = {
        "x": np.float64([[1, 2]]),
        "y": np.array([True]),
        "z": np.zeros((0, 3), np.float32),
        "f": ARRAYS["gate.mean"],
    }
    assert_same_arrays(unpack_arrays(pack_arrays(ARRAYS | odd)), ARRAYS | odd)


def test_an_instruction_comes_out_as_it_went_in():
    sent = read_instruction(instruction(7, ARRAYS, ["b", "a"]))
    assert (sent.server_round, sent.tasks) == (7, ("b", "a"))
    assert_same_arrays(sent.arrays, ARRAYS)
    assert not instruction(1).array_records


def test_a_train_reply_comes_out_as_it_went_in():
    reply, expected = unpack_train_reply(pack_train_reply(train_reply())), train_reply()
    assert_same_arrays(reply.arrays, expected.arrays)
    assert np.array_equal(reply.usage, expected.usage)
    assert np.array_equal(reply.task_examples, expected.task_examples)
    assert (reply.loss, reply.num_examples, reply.gate_entropy) == (1.25, 40, 0.75)


def test_scores_come_out_as_they_went_in():
    assert unpack_scores(pack_scores(SCORES)) == SCORES
    assert list(unpack_scores(pack_scores(SCORES))) == ["b", "a"]


def test_measures_come_out_as_they_went_in():
    assert unpack_measured(pack_measured(MEASURED)) == MEASURED
    assert read_use(pack_evaluate_reply(evaluate_reply())).measured == MEASURED


def test_without_measures_nothing_is_added_to_a_message():
    plain = pack_evaluate_reply(replace(evaluate_reply(), measured={}))
    assert set(plain) == {"tasks", "scores", "gate"}
    assert unpack_measured(plain) == {}


def test_a_prepare_reply_comes_out_as_it_went_in():
    got, expected = vars(unpack_prepare_reply(pack_prepare_reply(prepare_reply()))), vars(prepare_reply())
    for name in ("counts", "sums", "squares"):
        assert np.array_equal(got.pop(name), expected.pop(name))
    assert got == expected


def test_moments_come_out_as_they_went_in():
    moments = np.arange(9, dtype=np.float32).reshape(3, 3)
    got = unpack_moments(pack_moments(moments))
    assert got.dtype == np.float64 and np.array_equal(got, moments)


def test_an_evaluate_reply_comes_out_as_it_went_in():
    reply, expected = read_use(pack_evaluate_reply(evaluate_reply())), evaluate_reply()
    assert reply.scores == SCORES
    assert reply.expert_use.keys() == SCORES.keys()
    for task, weights in expected.expert_use.items():  # by name, though scores stand in another order
        np.testing.assert_array_equal(reply.expert_use[task], weights, strict=True)


def test_a_cluster_reply_comes_out_as_it_went_in():
    reply, expected = read_clusters(pack_cluster_reply(cluster_reply())), cluster_reply()
    np.testing.assert_array_equal(reply.counts, expected.counts, strict=True)
    np.testing.assert_array_equal(reply.sums, expected.sums, strict=True)
    assert reply.inertia == 1.5


def test_a_pool_comes_out_as_it_went_in():
    pool = {name: ARRAYS[name] for name in SPEC.pool()}
    assert_same_arrays(read_pool(pack_pool(pool)), pool)
    assert_same_arrays(read_pool(pack_pool(ARRAYS)), pool)  # what else is sent is left


# --- Size ---


def drawn(shapes):
    """Draw arrays that differ: Flower ships equal bytes once."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=dimensions).astype(np.float32) for name, dimensions in shapes.items()}


def test_a_record_weighs_four_bytes_a_parameter_and_a_header_an_array():
    # Flower's headers, as pinned: numpy's own of 128 bytes, dtype and shape, and a hash for the array and its chunk.
    payload = 4 * 8 * 5 * 2 * 16
    headers = [
        message_bytes(pack_arrays(drawn({f"pool.keys.{n}": (8, 5, 2, 16) for n in range(count)}))) - payload * count
        for count in range(1, 9)
    ]
    assert headers[0] == 475
    assert all(460 <= after - before <= 461 for before, after in pairwise(headers))


def test_messages_both_ways_weigh_what_the_shapes_say():
    down = message_bytes(instruction(1, drawn(SPEC.all())))
    update = TrainReply(drawn(SPEC.trainable()), 1.0, 40, np.ones(3), 0.5)
    up = message_bytes(pack_train_reply(update))
    statistics = 2 * SPEC.hidden_size
    # An array's header, and 700 bytes at most for the round or the metrics and the records around them.
    assert 0 < down - 4 * (num_parameters(SPEC) + statistics) < 480 * len(SPEC.all()) + 700
    assert 0 < up - 4 * num_parameters(SPEC) < 480 * len(SPEC.trainable()) + 700


def test_an_adapter_comes_out_as_it_went_in():
    spec, arrays = read_adapter(pack_adapter(CARD, ADAPTER_ARRAYS))
    assert_same_arrays(arrays, ADAPTER_ARRAYS)
    assert spec.peft_card == CARD
    assert spec.all() == spec.trainable() == {name: array.shape for name, array in ADAPTER_ARRAYS.items()}
    assert spec.tasks == ("a", "b")


@pytest.mark.parametrize("method", ["lora", "ffa-lora"])
def test_what_is_frozen_goes_by_the_method(method):
    names = [f"base_model.model.h.0.c_attn.lora_{which}.weight" for which in "AB"]
    arrays = {name: np.ones((2, 2), np.float32) for name in names}
    spec, _ = unpack_adapter(pack_adapter({"peft_type": "LORA"}, arrays), method, ["a", "b"])
    assert spec.frozen == ({names[0]} if method == "ffa-lora" else set())
    assert [*spec.trainable()] == (names[1:] if method == "ffa-lora" else names)
    assert spec.tasks == ()
    assert num_parameters(spec) == 4 * len(spec.trainable())
