"""Normalisation, and embeddings of positions and of the guidance scale (arXiv 2602.04770, appendix A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_BASE = 10000.0
_FREQUENCIES = 128  # of the guidance scale's sinusoids
_GUIDANCE_WEIGHT = 0.02  # of the normalised guidance embedding: the size of the other embeddings at the start


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weights: under autocast too, and then with PyTorch's fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return super().forward(x.to(self.weight.dtype))


class GuidanceEmbedding(nn.Module):
    """Sinusoids, two linear layers, RMSNorm, times 0.02.

    Args:
        width: length of the embedding.
        eps: of the normalisation.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(2 * _FREQUENCIES, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = RMSNorm(width, eps=eps)

    def forward(self, scale: Tensor) -> Tensor:
        """Embed guidance scales [B] as [B, width]."""
        steps = torch.arange(_FREQUENCIES, dtype=torch.float32, device=scale.device)
        frequencies = torch.exp(-math.log(_BASE) * steps / _FREQUENCIES)
        angles = scale.float().unsqueeze(1) * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.linear1.weight.dtype)  # [B, 256]
        embedded = self.linear2(functional.silu(self.linear1(sinusoids)))
        return _GUIDANCE_WEIGHT * self.norm(embedded)


def rotary_angles(tokens: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [tokens, head_dim] of rotary positions 0, 1, ... (Su et al. 2021), base 10000."""
    frequencies = _BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(tokens, dtype=torch.float32, device=device).unsqueeze(1) * frequencies
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def apply_rotary(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of queries or keys [B, heads, T, head_dim]."""
    cos, sin = angles
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return the sine-cosine embedding [1, grid * grid, width] of a square grid in row order (MAE, He et al. 2021).

    On the CPU. The first half of the width embeds the column, the second the row; each half is sines, then cosines.
    """
    frequencies = _BASE ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    columns = line.unsqueeze(0).expand(grid, -1, -1)
    rows = line.unsqueeze(1).expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, grid * grid, width).float()
