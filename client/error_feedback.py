"""Error feedback: what rounding took from an update is added to the client's next one (Seide et al. 2014)."""

import numpy as np
from flwr.app import RecordDict

from common.mixture_arrays import Arrays
from common.wire.compressed import as_received
from common.wire.records import pack_arrays, unpack_arrays

LEFT = "left-by-rounding"


def change_to_send(trained: Arrays, received: Arrays, state: RecordDict) -> Arrays:
    """Return how an update changed what was received, with what rounding to int8 left of the client's last change.

    What it leaves of this one is kept in `state`, which Flower brings back with the client's next message. It is lost
    with the node's process, which costs a rounding.
    """
    left = unpack_arrays(state.array_records[LEFT]) if LEFT in state.array_records else {}
    change = {name: array - received[name] + left.get(name, np.float32(0)) for name, array in trained.items()}
    sent = as_received(change)
    state[LEFT] = pack_arrays({name: array - sent[name] for name, array in change.items()})
    return change
