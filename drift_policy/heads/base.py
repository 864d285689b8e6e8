"""The protocol that every way of drawing an action chunk follows.

Shape letters: B observations, G samples per observation, Tp predicted steps (horizon), Da action size,
C condition size.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from drift_policy.networks import ActionNetwork

Metrics = dict[str, Tensor]
# Networks embed times with sinusoids made for diffusion step numbers; [0, 1] would use only the slowest of them.
TIME_SCALE = 100.0
Generators = torch.Generator | list[torch.Generator] | None  # one for all observations, or one for each
# The random numbers of a training step, and what else depends on the step, one row an observation: name -> [B, ...].
Draws = dict[str, Tensor]


class ActionHead(nn.Module, ABC):
    """Draws normalised action chunks from a condition, with the network it owns."""

    time_conditioned: ClassVar[bool]  # whether the network is told a diffusion or flow time
    stochastic: ClassVar[bool] = True  # whether the drawn chunk depends on the noise

    def __init__(self, config: Any, network: ActionNetwork) -> None:
        super().__init__()
        self.config = config
        self.network = network

    @property
    @abstractmethod
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) that one chunk costs."""

    @abstractmethod
    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """Return the random numbers that the loss of `batch` observations needs, on the generator's device.

        They are an input of the loss so that they may be functions of the training step alone: a resumed run, several
        processes and a compiled update then see the same numbers.
        """

    def scheduled(self, batch: int, step: int | None) -> Draws:
        """Return what the loss of `batch` observations needs that changes with the step, the same in every row.

        Tensors, so that a compiled update need not be compiled again, and rows, so that they are split as noise is.

        Args:
            batch: B.
            step: optimiser steps done before; None if unknown.

        Raises:
            ValueError: the step is needed, but unknown.
        """
        return {}

    @abstractmethod
    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the scalar training loss and detached metrics.

        Args:
            action: normalised demonstrated chunks, [B, Tp, Da].
            condition: encoded observations, [B, C].
            draws: from `draw(B)`, on the device of `action`.
        """

    @abstractmethod
    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return normalised chunks [B, G, Tp, Da], one for each noise.

        Args:
            condition: encoded observations, [B, C].
            noise: the starting noise, [B, G, Tp, Da].
            generator: source of any further noise that the head draws on the way.
        """

    def _draw_noise(self, batch: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return standard normal noise [batch, samples, Tp, Da]."""
        shape = (batch, samples, self.network.horizon, self.network.action_dim)
        return torch.randn(shape, generator=generator)
