"""From a CPU to the backbone's device without waiting for what the device still has to do."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device; a GPU takes it from pinned memory when it gets there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
