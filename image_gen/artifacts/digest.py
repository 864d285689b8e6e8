"""A digest of the weights of a network, whatever file or hub they came from."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_digest(network: nn.Module) -> str:
    """Return the sha256, in hexadecimal digits, of types, shapes and numbers of all tensors of a network, in order."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
