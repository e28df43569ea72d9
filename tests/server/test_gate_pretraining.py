"""Gate pre-training by task, by domain, by k-means and not at all: what is asked for, and where inputs are sent."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from numpy.typing import NDArray

from common.config import Config
from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec
from common.wire.preparation import PrepareReply
from common.wire.rounds import read_instruction
from server.expert_groups import alike, dealt
from server.first_mixture import first_mixture
from server.gate_fit import TASK_MARGIN
from server.gate_statistics import GateStatistics, sum_statistics
from server.preparation import Preparation, prepare_clients
from server.run_directory import RunDirectory
from simulations.inline import InlineGrid

First = Callable[..., Arrays]


@pytest.fixture
def prepared(clients: Any, directory: RunDirectory) -> Preparation:
    grid = InlineGrid(clients.app, {}, 3)
    return prepare_clients(grid, grid.get_node_ids(), 60.0, directory)


@pytest.fixture
def first(clients: Any, config: Config, spec: MixtureSpec, prepared: Preparation) -> First:
    """Return a function that makes the first mixture of a pre-training, and of a spec changed as told."""

    def make(pretraining: str, **changes: Any) -> Arrays:
        settings = replace(config, gate_pretraining=pretraining)
        return first_mixture(InlineGrid(clients.app, {}, 3), settings, replace(spec, **changes), prepared)

    return make


def experts_of(arrays: Arrays, inputs: NDArray[np.float64]) -> list[int]:
    """Return the expert that the input gate favours for each input `[rows, hidden]`."""
    x = (inputs - arrays["gate.mean"]) / arrays["gate.scale"]
    hidden = np.tanh(x @ arrays["gate.hidden.weight"].T + arrays["gate.hidden.bias"])
    logits = hidden @ arrays["gate.output.weight"].T + arrays["gate.output.bias"]
    return [int(expert) for expert in logits.argmax(axis=1)]


def means(prepared: Preparation) -> tuple[GateStatistics, NDArray[np.float64]]:
    statistics = sum_statistics([*prepared.replies.values()])
    return statistics, statistics.sums / statistics.counts[:, None]


def test_by_domain_the_gate_sends_tasks_to_their_domains_expert(prepared: Preparation, first: First) -> None:
    domains = {"task 0": "p", "task 1": "q", "task 2": "q", "shared": "r"}
    for client, reply in prepared.replies.items():
        prepared.replies[client] = replace(reply, domains=[domains[task] for task in reply.tasks])
    arrays = first("domain")
    statistics, inputs = means(prepared)
    found = dict(zip(statistics.tasks, experts_of(arrays, inputs), strict=True))
    assert found == {"task 0": 0, "task 1": 1, "task 2": 1, "shared": 2}


def test_without_pretraining_the_gate_is_as_drawn_and_nothing_is_asked(clients: Any, first: First) -> None:
    assert (first("none")["gate.output.bias"] == 0).all()
    assert {phase for phase, _, _ in clients.calls} == {"prepare"}


# --- k-means ---


def listen_for_clusters(clients: Any) -> list[Arrays]:
    """Return a list that fills with what each client is sent in each step."""
    asked: list[Arrays] = []
    answer = clients.app._registered_funcs["query.clusters"]

    def listen(message: Message, context: Context) -> Message:
        asked.append(read_instruction(message.content).arrays)
        reply: Message = answer(message, context)
        return reply

    clients.app._registered_funcs["query.clusters"] = listen
    return asked


def test_by_k_means_an_input_goes_to_the_expert_of_its_nearest_centre(first: First, clients: Any) -> None:
    asked = listen_for_clusters(clients)
    arrays = first("kmeans")
    inputs = np.concatenate([clients.gate_inputs(client).reshape(-1, 5) for client in range(3)])
    standardised = (inputs - arrays["gate.mean"]) / arrays["gate.scale"]
    nearest = [int(np.argmin([((x - centre) ** 2).sum() for centre in asked[-1]["centres"]])) for x in standardised]
    assert {*nearest} == {0, 1, 2}
    assert np.mean(np.array(nearest) == experts_of(arrays, inputs)) > 0.9
    phases = [phase for phase, _, _ in clients.calls if phase != "prepare"]
    assert phases == ["moments"] * 3 + ["clusters"] * len(asked)


def relabelled(reply: PrepareReply, tasks: list[str], order: list[int]) -> PrepareReply:
    return replace(
        reply,
        tasks=tasks,
        domains=[f"domain of {task}" for task in tasks],
        counts=reply.counts[order],
        sums=reply.sums[order],
        squares=reply.squares[order],
    )


@pytest.mark.parametrize("change", ["names", "order", "one label"])
def test_k_means_uses_no_labels_of_tasks(first: First, prepared: Preparation, change: str) -> None:
    before = first("kmeans")
    for client, reply in prepared.replies.items():
        if change == "names":
            tasks = [f"renamed {client}", f"zz {client}"]  # none is shared any more
            prepared.replies[client] = relabelled(reply, tasks, [0, 1])
        elif change == "order":
            prepared.replies[client] = relabelled(reply, reply.tasks[::-1], [0, 1])  # the sums of another task
        else:
            whole = {name: getattr(reply, name).sum(axis=0, keepdims=True) for name in ("counts", "sums", "squares")}
            prepared.replies[client] = replace(reply, tasks=["any"], domains=["any"], **whole)
    after = first("kmeans")
    for name, array in before.items():
        # Sums in another order, which 1500 steps of the fit carry on.
        np.testing.assert_allclose(after[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_client_that_falls_silent_between_steps_is_named_and_the_others_go_on(
    clients: Any, first: First, prepared: Preparation, caplog: pytest.LogCaptureFixture
) -> None:
    clients.misbehaviour[1, "clusters"] = lambda _: 1 / 0
    assert all(np.isfinite(array).all() for array in first("kmeans").values())
    assert "client 1 failed to query.clusters: division by zero" in caplog.text
    assert prepared.failed["clusters"] == {1: "division by zero"}


def test_no_clusters_at_all_are_an_error_with_a_reason(clients: Any, first: First) -> None:
    for client in range(3):
        clients.misbehaviour[client, "clusters"] = lambda _: 1 / 0
    with pytest.raises(RuntimeError, match=r"no client sent its clusters: division by zero"):
        first("kmeans")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda reply: replace(reply, counts=-reply.counts), "counts and inertia must not be negative"),
        (lambda reply: replace(reply, sums=reply.sums * np.nan), r"sums must be finite and \[3, 5\]"),
        (lambda reply: replace(reply, counts=reply.counts[:2]), r"counts must be finite and \[3\]"),
    ],
)
def test_a_clients_false_clusters_are_rejected(
    clients: Any, first: First, prepared: Preparation, spoil: Callable[[Any], Any], reason: str
) -> None:
    clients.misbehaviour[0, "clusters"] = spoil
    first("kmeans")
    assert prepared.failed["clusters"].keys() == {0}
    assert re.search(reason, prepared.failed["clusters"][0])


def test_like_tasks_share_an_expert(first: First, prepared: Preparation) -> None:
    arrays = first("like-tasks", num_experts=2)
    statistics, inputs = means(prepared)
    centres = (inputs - arrays["gate.mean"]) / arrays["gate.scale"]
    expected = alike(centres, 2).tolist()
    assert experts_of(arrays, inputs) == expected != dealt(statistics.tasks, 2).tolist()


# --- The task gate, and the shared expert ---


@pytest.mark.parametrize("gate", ["task", "both"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_task_gate_begins_with_its_tasks_experts(
    first: First, prepared: Preparation, gate: str, shared: bool
) -> None:
    tasks = tuple(sorted(prepared.tasks))
    arrays = first("task", gate=gate, tasks=tasks, num_experts=3 + shared, shared_expert=shared)
    statistics, inputs = means(prepared)
    expected = dealt(statistics.tasks, 3).tolist()
    assert experts_of(arrays, inputs) == expected  # the input gate too: for unknown tasks, or as half of both
    logits = arrays["gate.task_embeddings"] @ arrays["gate.query.weight"].T @ arrays["gate.expert_keys"].T
    for task, expert in zip(statistics.tasks, expected, strict=True):
        of_task = logits[tasks.index(task)]
        # Keys are orthonormal, so a task's expert is ahead by the margin.
        np.testing.assert_allclose(of_task, TASK_MARGIN * np.eye(3)[expert], atol=1e-5)


def test_only_statistics_and_centres_travel_down(clients: Any, first: First) -> None:
    asked = listen_for_clusters(clients)
    first("kmeans")
    assert asked
    assert all([*arrays] == ["gate.mean", "gate.scale", "centres"] for arrays in asked)
