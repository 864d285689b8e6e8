"""Spatial softmax: where in the image each feature is, as coordinates (Finn et al. 2016, arXiv:1509.06113)."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class SpatialSoftmax(nn.Module):
    """Turn a feature map [N, C, h, w] into the expected positions [N, 2 K] of K keypoints.

    A 1x1 convolution makes K maps; a softmax over the places of each weighs their coordinates, which run from -1 to 1
    (left to right, top to bottom). Diffusion Policy's form: temperature 1, no noise.

    Args:
        channels: C.
        height: h.
        width: w.
        num_keypoints: K.
    """

    grid: Tensor

    def __init__(self, channels: int, height: int, width: int, num_keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, num_keypoints, 1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return x and y of every keypoint, [N, 2 K]."""
        # Coordinates need more than the three decimal digits of bfloat16. The meta device, on which networks are sized
        # without memory, has no autocast to switch off.
        with nullcontext() if features.is_meta else torch.autocast(features.device.type, enabled=False):
            weights = self.maps(features.to(self.grid.dtype)).flatten(2).softmax(dim=-1)
            return (weights @ self.grid).flatten(1)
