"""The law of the guidance scale alpha in training (appendix A.7 of arXiv 2602.04770).

The weight of unconditional negatives that follows from alpha is `image_gen.feature_loss.guidance_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drift_policy.errors import require


@dataclass
class GuidanceLaw:
    """p(alpha) proportional to alpha^-exponent on [minimum, maximum], and a share of labels without guidance."""

    minimum: float = 1.0  # least guidance scale; 1 is none
    maximum: float = 4.0  # largest guidance scale; equal to the minimum: always this one
    exponent: float = 3.0  # how fast the density falls; 1 is uniform in the logarithm of alpha
    unguided_share: float = 0.0  # share of labels with alpha = 1, whatever the law

    def __post_init__(self) -> None:
        require(
            1 <= self.minimum <= self.maximum,
            f"drift.guidance: minimum={self.minimum} and maximum={self.maximum} must be at least 1 and in this order.",
        )
        require(
            0 <= self.unguided_share <= 1,
            f"drift.guidance.unguided_share must be from 0 to 1, but is {self.unguided_share}.",
        )

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Draw guidance scales by the inverse of the distribution function, float32 [number].

        Args:
            number: of labels.
            generator: on the CPU.
        """
        uniform = torch.rand(number, generator=generator, dtype=torch.float64)
        unguided = torch.rand(number, generator=generator) < self.unguided_share
        scale = self.quantile(uniform)
        return torch.where(unguided, 1.0, scale).float()

    def quantile(self, probability: Tensor) -> Tensor:
        """Return the guidance scale below which a share `probability` of the guided labels lies."""
        power = 1.0 - self.exponent
        if power == 0:
            return self.minimum * (self.maximum / self.minimum) ** probability
        low, high = self.minimum**power, self.maximum**power
        return (low + probability * (high - low)) ** (1 / power)
