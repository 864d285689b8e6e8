"""The flow-matching head: a straight path from noise to the action chunk, followed in Euler steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from drift_policy.errors import ConfigurationError
from drift_policy.heads.base import TIME_SCALE, ActionHead, Draws, Generators, Metrics


@dataclass
class FlowHeadConfig:
    """Settings of the flow-matching head."""

    num_inference_steps: int = 10  # Euler steps, one network evaluation each

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigurationError(f"head.num_inference_steps must be positive, but is {self.num_inference_steps}.")


class FlowHead(ActionHead):
    """Rectified flow: x_t = (1 - t) noise + t action, the network predicts the velocity action - noise."""

    time_conditioned = True
    config: FlowHeadConfig

    @property
    def num_evaluations(self) -> int:
        """The number of Euler steps."""
        return self.config.num_inference_steps

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """Return the noise and a uniformly drawn time [batch, 1] of each observation."""
        return {"noise": self._draw_noise(batch, 1, generator), "time": torch.rand((batch, 1), generator=generator)}

    def compute_loss(self, action: Tensor, condition: Tensor, draws: Draws) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the velocity at the drawn time."""
        noise, time = draws["noise"], draws["time"]
        target = action.unsqueeze(1)
        point = torch.lerp(noise, target, time[:, :, None, None])
        velocity = self.network(sample=point, condition=condition, time=time * TIME_SCALE)
        loss = (velocity - (target - noise)).square().mean()
        return loss, {"velocity_mse": loss.detach()}

    def sample(self, condition: Tensor, noise: Tensor, generator: Generators = None) -> Tensor:
        """Follow the velocity from the noise in equal Euler steps; `generator` is not used."""
        steps = self.config.num_inference_steps
        point = noise
        for step in range(steps):
            time = noise.new_full(noise.shape[:2], TIME_SCALE * step / steps)
            point = point + self.network(sample=point, condition=condition, time=time) / steps
        return point
