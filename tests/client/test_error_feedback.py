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
    for _ in range(20):
        sent = change_to_send({"pool.keys.1": received["pool.keys.1"] + change}, received, state)
        arrived += restore(compress(sent, "int8"))["pool.keys.1"]
        wanted += change
    step = 10.0 / 127
    assert (np.abs(arrived - wanted) <= step).all()
    assert (arrived[:, 1:] > 0.1).all()  # 0.2 wanted; without feedback 0
    alone = restore(compress({"pool.keys.1": change}, "int8"))["pool.keys.1"]
    assert (alone[:, 1:] == 0).all()
