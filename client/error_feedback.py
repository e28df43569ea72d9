"""Error feedback: what rounding took from an update is added to the client's next one (Seide et al. 2014)."""

import numpy as np
from flwr.app import RecordDict

from common.mixture_arrays import Arrays
from common.wire.compressed import as_received
from common.wire.records import pack_arrays, unpack_arrays

LEFT = "left-after-round-"


def change_to_send(trained: Arrays, received: Arrays, state: RecordDict, server_round: int) -> Arrays:
    """Return how an update changed what was received, with what rounding to int8 left of the client's last change.

    What it leaves of this one is kept in `state`, which comes back with the client's next message. What the change
    before left is kept, too: a run that is resumed asks for its last, unfinished round again.
    """
    rounds = sorted(int(name.removeprefix(LEFT)) for name in state if name.startswith(LEFT))
    earlier = [number for number in rounds if number < server_round][-1:]
    left = unpack_arrays(state.array_records[f"{LEFT}{earlier[0]}"]) if earlier else {}
    change = {name: array - received[name] + left.get(name, np.float32(0)) for name, array in trained.items()}
    sent = as_received(change)
    for number in set(rounds) - set(earlier):
        del state[f"{LEFT}{number}"]
    state[f"{LEFT}{server_round}"] = pack_arrays({name: array - sent[name] for name, array in change.items()})
    return change
