"""Error feedback: over rounds nothing of the changes is lost but the last rounding."""

import numpy as np
from flwr.app import RecordDict

from client.error_feedback import change_to_send
from common.wire.compressed import compress, restore


def test_what_rounding_leaves_is_sent_later():
    rng = np.random.default_rng(0)
    state = RecordDict()
    received = {"pool.keys.1": rng.normal(size=(2, 8)).astype(np.float32)}
    wanted = np.zeros((2, 8))
    arrived = np.zeros((2, 8))
    # One large value makes the steps of the rounding wide: alone, the small ones would be rounded to nothing.
    change = np.full((2, 8), 0.01, np.float32)
    change[:, 0] = 10.0
    for number in range(20):
        sent = change_to_send({"pool.keys.1": received["pool.keys.1"] + change}, received, state, number)
        arrived += restore(compress(sent, "int8"))["pool.keys.1"]
        wanted += change
    step = 10.0 / 127
    assert (np.abs(arrived - wanted) <= step).all()
    assert (arrived[:, 1:] > 0.1).all()  # 0.2 wanted; without feedback 0
    alone = restore(compress({"pool.keys.1": change}, "int8"))["pool.keys.1"]
    assert (alone[:, 1:] == 0).all()


def test_a_round_that_is_asked_for_again_gives_the_same_change():
    rng = np.random.default_rng(0)
    zero = {"pool.keys.1": np.zeros((2, 8), np.float32)}
    trained = [{"pool.keys.1": rng.normal(size=(2, 8)).astype(np.float32)} for _ in range(8)]

    def changes(rounds):
        state = RecordDict()
        return [change_to_send(trained[n], zero, state, n)["pool.keys.1"] for n in rounds], state

    once, undisturbed = changes([1, 2, 5, 7])
    again, resumed = changes([1, 2, 5, 5, 5, 7, 7])
    np.testing.assert_array_equal(again[2:5], [once[2]] * 3)
    np.testing.assert_array_equal(again[5:], [once[3]] * 2)
    assert sorted(resumed) == sorted(undisturbed) and len(resumed) == 2  # and no more is kept
    assert (once[1] != trained[2]["pool.keys.1"]).any()


def test_a_round_before_all_that_is_known_starts_without():
    state = RecordDict()
    zero, one = ({"pool.keys.1": np.full((2, 8), value, np.float32)} for value in (0.0, 0.013))
    change_to_send(one, zero, state, 5)
    np.testing.assert_array_equal(change_to_send(one, zero, state, 3)["pool.keys.1"], one["pool.keys.1"])
