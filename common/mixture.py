"""The mixture of prompts: a pool of experts, and the gate that weighs them for each input."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from common.mixture_arrays import Arrays, MixtureShape


class Gate(nn.Module):
    """A small MLP from the mean hidden state of an input to expert weights (MoPs, arXiv 2310.02842, section 3).

    Its input is standardised by fixed per-feature statistics: without them a few large features dominate and the gate
    collapses to one expert.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden_size: int, gate_hidden_size: int, num_experts: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("scale", torch.ones(hidden_size))
        self.hidden = nn.Linear(hidden_size, gate_hidden_size)
        self.output = nn.Linear(gate_hidden_size, num_experts)

    def forward(self, gate_input: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch experts"]:
        """Return log weights: the log of a softmax, so that an expert with weight 0 vanishes without a NaN."""
        standardised = (gate_input - self.mean) / self.scale
        logits = self.output(torch.tanh(self.hidden(standardised)))
        return F.log_softmax(logits / self.temperature, dim=-1)


class PromptPool(nn.Module):
    """All experts: key/value pairs `[experts, length, kv_heads, head_dim]` in every layer from the injection on."""

    def __init__(self, shape: MixtureShape) -> None:
        super().__init__()
        pairs = (shape.num_experts, shape.tokens_per_expert)
        self.keys = nn.ParameterDict()
        self.values = nn.ParameterDict()
        for layer, (kv_heads, key_size, value_size) in sorted(shape.kv_shapes.items()):
            self.keys[str(layer)] = nn.Parameter(torch.zeros(*pairs, kv_heads, key_size))
            self.values[str(layer)] = nn.Parameter(torch.zeros(*pairs, kv_heads, value_size))


class Mixture(nn.Module):
    """Pool plus gate, float32: all that is trained and all that travels. With one expert there is no gate."""

    def __init__(self, shape: MixtureShape, temperature: float) -> None:
        super().__init__()
        self.shape = shape
        self.pool = PromptPool(shape)
        self.gate: Gate | None = None
        if shape.num_experts > 1:
            self.gate = Gate(shape.hidden_size, shape.gate_hidden_size, shape.num_experts, temperature)

    def log_weights(self, gate_input: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch experts"]:
        """Weigh the experts for each input; the weights of an input sum to 1."""
        if self.gate is None:
            return gate_input.new_zeros(gate_input.shape[0], 1)
        log_weights: Tensor = self.gate(gate_input)
        return log_weights

    def load_arrays(self, arrays: Arrays) -> None:
        """Take over the values of `arrays`, which must be all arrays of the mixture's shape."""
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def trained_arrays(self) -> Arrays:
        """Return a copy of what training changed, as it is sent back."""
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in self.named_parameters()}


def mean_over_input(
    hidden: Float[Tensor, "batch seq hidden"], input_mask: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch hidden"]:
    """Average hidden states over the instruction and input tokens: the gate's input, in float32.

    The mask must leave out the answer, which would leak the label, and special tokens, whose huge norm hides the rest.
    """
    mask = input_mask.to(torch.float32)[..., None]
    return (hidden.detach().to(torch.float32) * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1.0)
