"""The adapter that a baseline's round 1 starts from."""

from flwr.serverapp import Grid

from common.adapter_spec import AdapterSpec
from common.config import Config
from common.mixture_arrays import Arrays
from common.wire.preparation import ADAPTER, unpack_adapter
from common.wire.rounds import instruction
from server.ask import ask_one
from server.preparation import Preparation


def first_adapter(grid: Grid, config: Config, preparation: Preparation) -> tuple[AdapterSpec, Arrays]:
    """Have a client draw the first adapter, by the run's seed; a hand-written prompt has none.

    Raises RuntimeError when no client can.
    """
    if config.method == "hand-written":
        return AdapterSpec(), {}
    tasks = sorted(preparation.tasks)
    return ask_one(
        grid,
        config,
        preparation,
        ADAPTER,
        instruction(0, tasks=tasks),
        lambda content: unpack_adapter(content, config.method, tasks),
    )
