"""The model card of a pruned backbone: what it was made from, how, and what that costs."""

from importlib.metadata import version

from simulations.compression.options import MAGNITUDE, TWO_FOUR, WANDA, Options
from simulations.compression.price import Price

HOW = {
    MAGNITUDE: "the smallest weights of each linear layer are zero (torch.nn.utils.prune.l1_unstructured)",
    WANDA: "in each row of a linear layer the weights of the smallest |weight| x norm of its input are zero "
    "(Wanda, Sun et al. 2023, arXiv 2306.11695)",
    TWO_FOUR: "of each four weights that stand together in a row, the two of the smallest |weight| x norm of its input "
    "are zero (Wanda, Sun et al. 2023, arXiv 2306.11695)",
}


def model_card(options: Options, source: str, result: str, num_calibration: int, before: Price, after: Price) -> str:
    """Return the text of the card; `source` and `result` are the fingerprints before and after."""
    rows = zip(before.figures().items(), after.figures().values(), strict=True)
    price = "\n".join(f"| {name} | {was} | {now} |" for (name, was), now in rows)
    texts = f", by {num_calibration} texts of `{options.calibration}`" if num_calibration else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [fedmops, pruned]
---

# A pruned language model, made by fedmops

Made from the backbone `{options.backbone}`, whose license it has, by method {options.method} at sparsity \
{options.sparsity}{texts}: {HOW[options.method]}. \
Pruned are the linear layers of the decoder layers; embeddings, head and norms are as they were.

| | backbone | pruned |
|---|---|---|
{price}
| fingerprint, not quantized | `{source}` | `{result}` |

The zeros are stored like any weight: neither file, memory nor time shrink by themselves. Perplexity is that of the \
answers of `{options.calibration}`'s validation split. Measured with torch {version("torch")}, \
transformers {version("transformers")}. Made by

```
{options.command}
```
"""
