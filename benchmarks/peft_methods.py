"""Training steps of peft's methods, as its documentation does them: plain AdamW on the loss that the model returns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaptionPromptConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    XLoraConfig,
    get_peft_model,
)

from common.backbone import Backbone
from common.batches import IGNORED, TokenizedExample, collate, pad_id

PROMPT_TOKENS, LORA_RANK, NUM_TASKS, XLORA_EXPERTS = 20, 8, 8, 2
CAUSAL_LM = "CAUSAL_LM"
LORA_TARGETS = ["q_proj", "v_proj"]

Step = Callable[[Sequence[TokenizedExample]], None]

# Methods that change the model they are given: each needs one of its own.
CHANGE_THE_MODEL = ("LoRA", "AdaptionPrompt", "X-LoRA")


def lora_config() -> LoraConfig:
    """Return what is compared as LoRA."""
    return LoraConfig(task_type=CAUSAL_LM, r=LORA_RANK, target_modules=LORA_TARGETS)


def peft_config(method: str, backbone: Backbone, directory: Path) -> PeftConfig:
    """Return a method's configuration; X-LoRA's experts, fresh LoRAs, are written to the directory."""
    tokens = {"task_type": CAUSAL_LM, "num_virtual_tokens": PROMPT_TOKENS}
    if method == "PromptTuning":
        return PromptTuningConfig(**tokens)
    if method == "PrefixTuning":
        return PrefixTuningConfig(**tokens)
    if method == "MultitaskPromptTuning":
        return MultitaskPromptTuningConfig(**tokens, num_tasks=NUM_TASKS, prompt_tuning_init="RANDOM")
    if method == "LoRA":
        return lora_config()
    if method == "AdaptionPrompt":
        return AdaptionPromptConfig(
            task_type=CAUSAL_LM, adapter_len=PROMPT_TOKENS, adapter_layers=backbone.num_layers // 2
        )
    assert method == "X-LoRA", method
    backbone.model.config.use_cache = False  # peft asks for it
    adapted = get_peft_model(backbone.model, lora_config())
    experts = {str(number): str(directory / f"expert-{number}") for number in range(XLORA_EXPERTS)}
    for path in experts.values():
        adapted.save_pretrained(path)
    adapted.unload()
    return XLoraConfig(task_type=CAUSAL_LM, hidden_size=backbone.hidden_size, adapters=experts)


def peft_step(method: str, backbone: Backbone, directory: Path) -> tuple[Step, int]:
    """Return a method's step and the number of parameters that it trains."""
    config = peft_config(method, backbone, directory)
    model: Any = get_peft_model(backbone.model, config)
    if method == "X-LoRA":
        model = model.to(backbone.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.001)
    padding = pad_id(backbone.tokenizer)

    def step(examples: Sequence[TokenizedExample]) -> None:
        batch = collate(examples, padding, backbone.device)
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels[:, -batch.labels.shape[1] :] = batch.labels
        tasks = {"task_ids": torch.zeros(len(examples), dtype=torch.long, device=backbone.device)}
        loss = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=labels,
            use_cache=False,
            **(tasks if method == "MultitaskPromptTuning" else {}),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in parameters)
