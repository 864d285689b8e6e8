"""The head of the minimal iterative policy: regression, then one step of denoising.

"Much Ado About Noising" (arXiv 2512.01809): its MIP, with the noise and the sampler of the authors' release.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from drift_policy.errors import ConfigurationError
from drift_policy.heads.base import TIME_SCALE, ActionHead, Draws, Generators, Metrics


@dataclass
class MipHeadConfig:
    """Settings of the head of the minimal iterative policy."""

    denoising_time: float = 0.9  # t*: the second evaluation is trained on chunks with noise of deviation 1 - t*
    # Of the second evaluation's error, against the first's. The authors' release has (t* / (1 - t*))^2 = 81, which
    # leaves little of the gradient to the first.
    denoising_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.denoising_time < 1.0:
            raise ConfigurationError(f"head.denoising_time must be inside (0, 1), but is {self.denoising_time}.")
        if self.denoising_weight <= 0.0:
            raise ConfigurationError(f"head.denoising_weight must be positive, but is {self.denoising_weight}.")


class MipHead(ActionHead):
    """Predicts a chunk from zeros at time 0, and a better one from that at time t*.

    In training the second evaluation sees the demonstrated chunk with noise in place of the first one's answer, so that
    both are regressions.
    """

    time_conditioned = True
    stochastic = False
    config: MipHeadConfig

    @property
    def num_evaluations(self) -> int:
        """Two."""
        return 2

    def draw(self, batch: int, generator: Generator | None = None) -> Draws:
        """Return the noise on the chunks that the second evaluation is trained on."""
        return {"noise": self._draw_noise(batch, 1, generator)}

    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of the mean squared errors of both evaluations."""
        target = action.unsqueeze(1)
        late = self.config.denoising_time
        noisy = target + (1.0 - late) * draws["noise"]
        ones = target.new_ones(len(action), 1)
        times = torch.cat([0.0 * ones, late * TIME_SCALE * ones], dim=1)
        both = self.network(sample=torch.cat([torch.zeros_like(target), noisy], 1), condition=condition, time=times)
        first, second = (both - target).square().mean(dim=(0, 2, 3))
        loss = first + self.config.denoising_weight * second
        return loss, {"action_mse": first.detach(), "denoising_mse": second.detach()}

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Return the same chunk for every noise, which only gives the shape."""
        chunk = torch.zeros_like(noise[:, :1])
        for time in (0.0, self.config.denoising_time * TIME_SCALE):
            chunk = self.network(sample=chunk, condition=condition, time=chunk.new_full(chunk.shape[:2], time))
        return chunk.expand_as(noise)
