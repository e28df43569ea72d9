"""What a run would need, as text and a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from common.config import Config
from common.data_counts import DataCounts
from common.mixture_spec import num_parameters
from simulations.report import data_line

if TYPE_CHECKING:  # they import torch
    from simulations.planning.client_data import Texts
    from simulations.planning.memory import Memory
    from simulations.planning.shape import Shape
    from simulations.planning.traffic import Traffic

KIB, MIB, GIB = 2**10, 2**20, 2**30
# Not measured by us: what a process that uses CUDA takes of a GPU beside its tensors.
CUDA_CONTEXT = 600 * MIB


@dataclass(frozen=True)
class Kind:
    """Clients that need the same: their numbers, a configuration, their longest texts, and what each needs."""

    clients: Sequence[int]
    config: Config
    texts: "Texts"
    memory: "Memory"


@dataclass(frozen=True)
class Plan:
    """What a run would need."""

    config: Config
    shape: "Shape"
    traffic: "Traffic"
    kinds: Sequence[Kind]
    counts: DataCounts


def show(plan: Plan, gpu_gib: float | None, console: Console) -> None:
    """Print a plan; with a GPU's size, also how many clients it holds."""
    config, shape, traffic = plan.config, plan.shape, plan.traffic
    trained = num_parameters(shape.spec)
    share = trained / shape.num_parameters

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    say(
        f"{config.method} on {config.backbone}: {trained:,} parameters are trained for {shape.num_parameters:,} frozen "
        f"ones ({share:.2%})"
    )
    say(
        f"a client's round: {size(traffic.to_train)} to it and {size(traffic.update)} back to train, "
        f"{size(traffic.to_evaluate)} and {size(traffic.scores)} to be scored"
    )
    say(
        f"the run, {config.num_clients} clients and {config.num_rounds} rounds: {size(traffic.run)} in all, "
        f"{size(traffic.before_round_1)} of it before round 1; full updates of the backbone in 16 bits would be "
        f"{size(full_updates(plan))}"
    )
    console.print(table(plan.kinds))
    if line := data_line(asdict(plan.counts)):
        say(line)
    if gpu_gib is not None:
        for kind in plan.kinds:
            say(fits(kind, gpu_gib))


def full_updates(plan: Plan) -> int:
    """Return the bytes of a run whose clients would send, and be sent, all parameters of the backbone in 16 bits."""
    return 2 * 2 * plan.shape.num_parameters * plan.traffic.num_trainers * plan.config.num_rounds


def table(kinds: Sequence[Kind]) -> Table:
    """Return a column for each kind of client."""
    built = Table(title="Memory of a client, at most")
    built.add_column("")
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        memory, texts = kind.memory, kind.texts
        built.add_column(f"clients {numbers(kind.clients)}\n{kind.config.quantization}", justify="right")
        for name, figure in (
            ("longest text, longest answer", f"{texts.longest}, {texts.longest_answer} tokens"),
            ("backbone's weights", size(memory.weights)),
            ("trained values, gradients, moments", size(memory.trained)),
            ("a training step beside them", f"{texts.num_trained} texts: {size(memory.training)}"),
            ("an evaluation pass", f"{texts.num_evaluated} texts: {size(memory.evaluation)}"),
            ("at once", size(memory.peak)),
        ):
            rows.setdefault(name, []).append(figure)
    for name, figures in rows.items():
        built.add_row(name, *figures)
    return built


def fits(kind: Kind, gpu_gib: float) -> str:
    """Say how many clients of a kind a GPU holds."""
    needed = kind.memory.peak + CUDA_CONTEXT
    count = int(gpu_gib * GIB // needed)
    clients = {0: "no such client", 1: "1 such client"}.get(count, f"{count} such clients")
    mend = "" if count else "; lower pass-tokens or max-sequence-tokens, or compress the backbone further"
    return (
        f"a GPU of {gpu_gib:g} GiB holds {clients} with {kind.config.quantization}: each is a process of "
        f"{size(needed)}, {size(CUDA_CONTEXT)} of which are allowed for CUDA itself{mend}"
    )


def numbers(clients: Sequence[int]) -> str:
    """Write ascending numbers with runs of them shortened: 0-3, 7."""
    runs: list[list[int]] = []
    for client in clients:
        if runs and client == runs[-1][-1] + 1:
            runs[-1].append(client)
        else:
            runs.append([client])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def size(num_bytes: int) -> str:
    """Write bytes in the largest unit that leaves a whole number before the point."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.{1 if num_bytes < 100 * unit else 0}f} {name}"
    return f"{num_bytes} B"
