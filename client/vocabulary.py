"""First prompts from the vocabulary: what the backbone makes of sampled tokens (Lester et al. 2021, section 3.1)."""

import numpy as np
import torch

from common.backbone import Backbone
from common.decoder import hidden_at, keys_and_values
from common.mixture_arrays import Arrays
from common.mixture_spec import MixtureSpec


@torch.no_grad()
def sampled_pool(backbone: Backbone, spec: MixtureSpec, rng: np.random.Generator) -> Arrays:
    """Return the arrays of a pool in which an expert is a short text of random tokens, special ones left out."""
    specials = set(backbone.tokenizer.all_special_ids)
    ordinary = [token for token in range(len(backbone.tokenizer)) if token not in specials]
    drawn = rng.choice(ordinary, (spec.num_experts, spec.tokens_per_expert))
    ids = torch.from_numpy(drawn).to(backbone.device)
    hidden = hidden_at(backbone, spec.injection_layer, ids, torch.ones_like(ids))
    tensors = {"pool.hidden": hidden}
    if spec.form == "kv":
        tensors = {}
        for layer, (keys, values) in keys_and_values(backbone.model, spec.injection_layer, hidden).items():
            tensors |= {f"pool.keys.{layer}": keys, f"pool.values.{layer}": values}
    return {name: tensor.float().cpu().numpy().copy() for name, tensor in tensors.items()}
