"""The mixture that round 1 starts from: its prompts drawn or taken over, its gate standardised and pre-trained."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from common.config import VOCABULARY_INIT, Config
from common.mixture_arrays import Arrays, initial_arrays
from common.mixture_file import SavedMixture, check_fingerprint, read_mixture
from common.mixture_spec import GATE_STATISTICS, MixtureSpec
from common.projection import projection
from common.wire.preparation import (
    CLUSTERS,
    MOMENTS,
    VOCABULARY,
    ClusterReply,
    unpack_cluster_reply,
    unpack_moments,
    unpack_pool,
)
from common.wire.rounds import instruction
from server.ask import ask, ask_one
from server.clusters import k_means
from server.expert_groups import alike, dealt
from server.gate_fit import fit_input_gate, fit_task_gate
from server.gate_statistics import Float, standardise, sum_statistics
from server.preparation import Preparation

log = logging.getLogger("flwr.fedmops")


def first_mixture(grid: Grid, config: Config, spec: MixtureSpec, preparation: Preparation) -> Arrays:
    """Make the first mixture; `preparation` counts what that sends.

    Raises RuntimeError when no client answers, ValueError when the run to start from does not fit.
    """
    rng = np.random.default_rng(config.seed)
    arrays = initial_arrays(spec, rng, config.prompt_scale)
    if spec.has_gate and config.standardise_gate_input:
        arrays = standardise(arrays, sum_statistics(list(preparation.replies.values())))
    if config.prompt_init == VOCABULARY_INIT:
        arrays |= ask_one(
            grid,
            config,
            preparation,
            VOCABULARY,
            instruction(0),
            lambda content: unpack_pool(content, spec.pool()),
        )
    elif config.init_run is not None:
        arrays |= taken_over(config, spec, next(iter(preparation.replies.values())).fingerprint)
    if not spec.has_gate or config.gate_pretraining == "none":
        return arrays
    return _pretrain_gate(grid, config, spec, preparation, arrays, rng)


def taken_over(config: Config, spec: MixtureSpec, fingerprint: str) -> Arrays:
    """Return what a new mixture takes from an earlier run: its prompts, and its gate unless that is fitted anew.

    One expert may start all (SPoT, Vu et al. 2022, arXiv 2110.07904). A task keeps its embedding by its name.
    """
    directory = Path(config.prompt_init)
    saved = read_mixture(directory)
    check_fingerprint(saved, directory, f"the run's backbone {config.backbone!r}", fingerprint)
    num_experts = spec.num_experts if saved.spec.num_experts == 1 else saved.spec.num_experts
    if replace(saved.spec, num_experts=num_experts).pool() != spec.pool():
        raise ValueError(
            f"the prompts of {directory} have other shapes than this run's: give the same prompt-form, "
            "tokens-per-expert and injection-layer, and as many experts or one"
        )
    repeats = spec.num_experts // saved.spec.num_experts
    arrays = {name: np.repeat(saved.arrays[name], repeats, axis=0) for name in spec.pool()}
    if config.gate_pretraining == "none":
        arrays |= _gate_of(saved, spec)
    return arrays


def _gate_of(saved: SavedMixture, spec: MixtureSpec) -> Arrays:
    tasks = [task for task in spec.tasks if task in saved.spec.tasks]
    same_tasks = replace(saved.spec, tasks=spec.tasks).all()
    gate = {name: shape for name, shape in spec.all().items() if name.startswith("gate.")}
    if not gate.items() <= same_tasks.items():
        log.warning("the gate of prompt-init is of another kind or size and is not taken over")
        return {}
    arrays = {name: saved.arrays[name] for name in gate if name != "gate.task_embeddings"}
    if "gate.task_embeddings" in gate:
        # A task that the earlier run did not know starts from the mean of those that it knew.
        mean = saved.arrays["gate.task_embeddings"].mean(axis=0)
        embeddings = np.repeat(mean[None], len(spec.tasks), axis=0)
        for task in tasks:
            row = saved.arrays["gate.task_embeddings"][saved.spec.tasks.index(task)]
            embeddings[spec.tasks.index(task)] = row
        arrays["gate.task_embeddings"] = embeddings
    return arrays


def _pretrain_gate(
    grid: Grid, config: Config, spec: MixtureSpec, preparation: Preparation, arrays: Arrays, rng: np.random.Generator
) -> Arrays:
    """Fit the gate on second moments of its input, and on sums by task, domain or cluster."""
    to_features = projection(spec.gate_input_size, config.seed)
    statistics_down = {name: arrays[name] for name in GATE_STATISTICS}
    num_features = len(to_features)

    def read(content: RecordDict) -> Float:
        moments = unpack_moments(content)
        if len(moments) != num_features:
            raise ValueError(f"the moments have size {len(moments)}, expected {num_features}")
        return moments

    exchanged = ask(grid, config, preparation, MOMENTS, instruction(0, statistics_down), preparation.nodes, read)
    if not exchanged.replies:
        raise RuntimeError(f"no client sent its moments: {next(iter(exchanged.failures.values()))}")
    moments: Float = np.sum(list(exchanged.replies.values()), axis=0)
    # A client that fell silent between the exchanges counts in none of the sums that the fit compares.
    statistics = sum_statistics([preparation.replies[client] for client in exchanged.replies])

    def step(centres: Float) -> list[ClusterReply]:
        stepped = ask(
            grid,
            config,
            preparation,
            CLUSTERS,
            instruction(0, statistics_down | {"centres": centres.astype(np.float32)}),
            {client: preparation.nodes[client] for client in exchanged.replies},
            lambda content: unpack_cluster_reply(content, spec.num_gated, num_features),
        )
        if not stepped.replies:
            raise RuntimeError(f"no client sent its clusters: {next(iter(stepped.failures.values()))}")
        return list(stepped.replies.values())

    if config.gate_pretraining == "kmeans":
        centres, counts = k_means(spec.num_gated, moments, statistics.counts.sum(), step, rng)
        experts = np.arange(spec.num_gated)
    else:
        means = statistics.sums / statistics.counts[:, None]
        centres = ((means - arrays["gate.mean"]) / arrays["gate.scale"]) @ to_features.T
        counts = statistics.counts
        if config.gate_pretraining == "like-tasks":
            experts = alike(centres, spec.num_gated)
        else:
            labels = statistics.tasks if config.gate_pretraining == "task" else statistics.domains
            experts = dealt(labels, spec.num_gated)
        if spec.has_task_gate:
            rows = np.array([spec.tasks.index(task) for task in statistics.tasks])
            arrays = fit_task_gate(arrays, rows, experts)
    return fit_input_gate(arrays, centres, counts, experts, moments, to_features, spec.temperature, rng)
