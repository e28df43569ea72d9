"""The mixture of prompts: a pool of experts, and the gate that weighs them for each input."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec
from common.transfer import send

UNKNOWN_TASK = -1
ParameterKind = Literal["prompts", "gate", "task-weights"]


class Gate(nn.Module):
    """Weighs the experts by the input, by its task, or by both.

    By input: a small MLP on the mean hidden state of the input (MoPs, arXiv 2310.02842, section 3), standardised by
    fixed per-feature statistics: without them a few large features dominate and the gate collapses to one expert.
    By task: the product of a learned task embedding, through a linear query, and the experts' keys (dynamic prompt
    fusion, arXiv 2509.18113). By both: the sum of the logits. A task without an embedding goes by its input alone.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: MixtureSpec) -> None:
        super().__init__()
        self.kind, self.temperature, self.top_k = spec.gate, spec.temperature, spec.top_k
        self.register_buffer("mean", torch.zeros(spec.gate_input_size))
        self.register_buffer("scale", torch.ones(spec.gate_input_size))
        self.hidden = nn.Linear(spec.gate_input_size, spec.gate_hidden_size)
        self.output = nn.Linear(spec.gate_hidden_size, spec.num_gated)
        if spec.gate == "task":  # stays as it was pre-trained: it serves unknown tasks only
            self.hidden.requires_grad_(False)
            self.output.requires_grad_(False)
        if spec.gate != "input":
            size = spec.task_embedding_size
            self.task_embeddings = nn.Parameter(torch.zeros(len(spec.tasks), size))
            self.query = nn.Linear(size, size, bias=False)
            self.expert_keys = nn.Parameter(torch.zeros(spec.num_gated, size))
        if spec.frozen_gate:
            self.requires_grad_(False)

    def forward(
        self, gate_input: Float[Tensor, "batch hidden"], task_ids: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch gated"]:
        """Return log weights: the log of a softmax, so that an expert with weight 0 vanishes without a NaN."""
        standardised = (gate_input - self.mean) / self.scale
        logits = self.output(torch.tanh(self.hidden(standardised)))
        if self.kind != "input":
            by_task = self.query(self.task_embeddings[task_ids.clamp_min(0)]) @ self.expert_keys.T
            known = (task_ids != UNKNOWN_TASK)[:, None]
            logits = torch.where(known, by_task if self.kind == "task" else logits + by_task, logits)
        if 0 < self.top_k < logits.shape[1]:
            kept = logits.topk(self.top_k, dim=-1).indices
            dropped = torch.ones_like(logits, dtype=torch.bool).scatter(1, kept, False)
            logits = logits.masked_fill(dropped, -torch.inf)
        return F.log_softmax(logits / self.temperature, dim=-1)


class PromptPool(nn.Module):
    """All experts.

    In the form kv they are key/value pairs `[experts, length, kv_heads, head_dim]` of every layer from the injection
    layer on; in the form hidden, hidden states `[experts, length, hidden]` at the injection layer.
    """

    def __init__(self, spec: MixtureSpec) -> None:
        super().__init__()
        self.keys = nn.ParameterDict()
        self.values = nn.ParameterDict()
        for name, dimensions in spec.pool().items():
            parameter = nn.Parameter(torch.zeros(dimensions))
            _, what, *layer = name.split(".")
            if layer:
                getattr(self, what)[layer[0]] = parameter
            else:
                self.hidden = parameter


class Mixture(nn.Module):
    """Pool plus gate, float32: all that is trained and all that travels. With one expert there is no gate."""

    def __init__(self, spec: MixtureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.pool = PromptPool(spec)
        self.gate: Gate | None = Gate(spec) if spec.has_gate else None
        self.task_log_variances: nn.Parameter | None = None
        if spec.learned_task_weights:
            self.task_log_variances = nn.Parameter(torch.zeros(len(spec.tasks)))
        self._rows = {task: row for row, task in enumerate(spec.tasks)}

    def task_ids(self, tasks: Sequence[str], device: torch.device) -> Int[Tensor, " batch"]:
        """Return the rows of tasks, UNKNOWN_TASK for one that has none."""
        return send(torch.tensor([self._rows.get(task, UNKNOWN_TASK) for task in tasks]), device)

    def log_weights(
        self, gate_input: Float[Tensor, "batch hidden"], task_ids: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch experts"]:
        """Weigh the experts for each input; the weights of the gated ones sum to 1, the shared one's is 1."""
        if self.gate is None:
            return gate_input.new_zeros(gate_input.shape[0], self.spec.num_experts)
        log_weights: Tensor = self.gate(gate_input, task_ids)
        return F.pad(log_weights, (0, int(self.spec.shared_expert)))

    def trained_parameters(self) -> dict[ParameterKind, list[nn.Parameter]]:
        """Return what training changes, by kind: each kind has a learning rate of its own."""
        gate = [] if self.gate is None else [weight for weight in self.gate.parameters() if weight.requires_grad]
        weights = [] if self.task_log_variances is None else [self.task_log_variances]
        return {"prompts": list(self.pool.parameters()), "gate": gate, "task-weights": weights}

    def load_arrays(self, arrays: Arrays) -> None:
        """Take over the values of `arrays`, which must be all arrays of the mixture's spec."""
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def trained_arrays(self) -> Arrays:
        """Return a copy of what training changed, as it is sent back."""
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }


def mean_over_input(
    hidden: Float[Tensor, "batch seq hidden"], input_mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch hidden"]:
    """Average hidden states over the instruction and input tokens: the gate's input, in float32.

    The mask must leave out the answer, which would leak the label, and special tokens, whose huge norm hides the rest.
    """
    mask = input_mask.to(hidden.device, torch.float32)[..., None]
    return (hidden.detach().to(torch.float32) * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
