"""Embeddings of the diffusion or flow time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sines, then cosines, of a number at frequencies from 1 down to 1/10000 (Vaswani et al. 2017).

    Args:
        dim: length of the embedding; even, at least 4.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        n_frequencies = dim // 2
        exponents = torch.arange(n_frequencies) / (n_frequencies - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10000.0) * exponents), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Embed time [...] as [..., dim]."""
        angles = time.unsqueeze(-1) * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class StepEncoder(nn.Sequential):
    """Diffusion Policy's step encoder: sinusoidal embedding, then a two-layer perceptron four times as wide inside.

    Maps time [...] to [..., dim]; dim is even, at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(SinusoidalEmbedding(dim), nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
