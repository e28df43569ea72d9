"""A Llama with a mixture in float64, every step written out: what injection is held against."""

import torch
import torch.nn.functional as F
from tiny import HEADS, KV_HEADS, LAYERS

# float32 sums of about a hundred terms, in another order by another kernel; measured 2e-5 on logits of size 1 to 10.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-4}


def llama_by_hand(model, ids, mixture, layer, num_prompt_tokens, first_seeing=0):
    """Run a Llama with a mixture on one text in float64, every step written out: logits `[seq, vocab]`.

    Positions before `first_seeing` see no prompts.
    """
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    arrays = {name: torch.from_numpy(array).double() for name, array in mixture.trained_arrays().items()}
    seq, size = len(ids), model.config.head_dim
    angles = torch.arange(seq).double()[:, None] * 10000.0 ** (-torch.arange(0, size, 2).double() / size)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt() * weight

    def rotate(x):
        return x * cos + torch.cat([-x[:, size // 2 :], x[:, : size // 2]], dim=-1) * sin

    x = weights["model.embed_tokens.weight"][ids]
    for index in range(LAYERS):
        if index == layer:
            gate_input = x[1:num_prompt_tokens].mean(0)  # all of the prompt but <s>
            hidden = (arrays["gate.hidden.weight"] @ gate_input + arrays["gate.hidden.bias"]).tanh()
            expert_weights = (arrays["gate.output.weight"] @ hidden + arrays["gate.output.bias"]).softmax(-1)
        w = {
            name.removeprefix(f"model.layers.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        normed = norm(x, w["input_layernorm.weight"])
        q, k, v = (
            (normed @ w[f"self_attn.{name}_proj.weight"].T).view(seq, -1, size).transpose(0, 1) for name in "qkv"
        )
        heads = []
        for h in range(HEADS):
            g = h // (HEADS // KV_HEADS)
            odds = (rotate(q[h]) @ rotate(k[g]).T / size**0.5).exp().tril()
            total, mixed = odds.sum(-1, keepdim=True), odds @ v[g]
            if index >= layer:
                for expert, weight in enumerate(expert_weights):
                    odds = weight * (rotate(q[h]) @ arrays[f"pool.keys.{index}"][expert, :, g].T / size**0.5).exp()
                    odds[:first_seeing] = 0
                    total = total + odds.sum(-1, keepdim=True)
                    mixed = mixed + odds @ arrays[f"pool.values.{index}"][expert, :, g]
            heads.append(mixed / total)
        x = x + torch.cat(heads, dim=-1) @ w["self_attn.o_proj.weight"].T
        normed = norm(x, w["post_attention_layernorm.weight"])
        up = F.silu(normed @ w["mlp.gate_proj.weight"].T) * (normed @ w["mlp.up_proj.weight"].T)
        x = x + up @ w["mlp.down_proj.weight"].T
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T
