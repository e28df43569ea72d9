"""A client's share of a GPU: its limit, and what to do when it is used up."""

import re

import torch

from common.config import Config


def limit_gpu_memory(device: torch.device, fraction: float, all_devices: bool = False) -> None:
    """Let this process take at most such a share of a CUDA device's memory, or of each; a CPU's is not limited.

    To be called before anything is loaded. A share of 1 lifts the limit of a client that this process served before.
    """
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()) if all_devices else [device.index]:
            torch.cuda.set_per_process_memory_fraction(fraction, index)


def out_of_memory_message(said: str, config: Config) -> str:
    """Say in one line what to change, from what torch said and what the client's settings are."""
    found = re.search(r"Tried to allocate ([\d.]+ \w+)", said)
    tried = f" (tried to allocate {found[1]})" if found else ""
    limited = config.gpu_memory_fraction < 1
    mends = [
        f"lower pass-tokens ({config.pass_tokens}) or max-sequence-tokens ({config.max_sequence_tokens})",
        f"choose a quantization that takes less than {config.quantization}",
        *([f"raise gpu-memory-fraction ({config.gpu_memory_fraction:g})"] if limited else []),
    ]
    what = "this client's share of the GPU's memory" if limited else "the GPU's memory"
    return f"{what} is used up{tried}: {', or '.join(mends)}"
