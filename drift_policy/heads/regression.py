"""The regression head: plain behaviour cloning with the mean squared error, the baseline without modes."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from drift_policy.heads.base import ActionHead, Draws, Generators, Metrics


@dataclass
class RegressionHeadConfig:
    """The regression head has no settings: the network sees zeros in place of the noise."""


class RegressionHead(ActionHead):
    """Predicts the mean chunk of an observation."""

    time_conditioned = False
    stochastic = False

    @property
    def num_evaluations(self) -> int:
        """One."""
        return 1

    def draw(self, batch: int, generator: Generator | None = None) -> Draws:
        """Return nothing: the loss has no random part."""
        return {}

    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the chunk."""
        target = action.unsqueeze(1)
        loss = (self.network(sample=torch.zeros_like(target), condition=condition) - target).square().mean()
        return loss, {"action_mse": loss.detach()}

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return the same chunk for every noise, which only gives the shape."""
        chunk: Tensor = self.network(sample=torch.zeros_like(noise[:, :1]), condition=condition)
        return chunk.expand_as(noise)
