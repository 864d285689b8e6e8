"""Images as bytes and back: level 0 is -1, level 255 is 1."""

from __future__ import annotations

import torch
from torch import Tensor


def to_levels(images: Tensor) -> Tensor:
    """Return images in [-1, 1] (clipped) of any shape as bytes on their device, without gradient."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """Return bytes of any shape as float32 in [-1, 1] on their device; `to_levels` gives the same bytes again."""
    return levels.float() / 127.5 - 1
