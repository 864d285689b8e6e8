"""Flow matching (Lipman et al. 2023) with the same network: the scalar that carries the guidance scale is the time.

Straight paths x_t = (1 - t) noise + t data; the network gives the velocity data - noise (rectified flow, Liu et al.
2023, Eq. 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from drift_policy.training.parallel import Processes
from drift_policy.training.schedule import step_generator
from drift_policy.training.stepped_training import Metrics
from image_gen.models import DiT
from image_gen.training.objective import Objective
from image_gen.training.samples import SampleStream

# The network's sinusoids are made for numbers up to about a thousand, as diffusion models count their steps.
TIME_SCALE = 1000.0


class FlowStep(NamedTuple):
    """What a step needs, over all processes."""

    data: Tensor  # [B, C, H, W]
    class_ids: Tensor  # [B]
    noise: Tensor  # [B, C, H, W]
    time: Tensor  # [B]
    styles: Tensor  # [B, noise_coords]


class FlowObjective(Objective[DiT, FlowStep]):
    """Trains a generator's network as a velocity field. Rows are images.

    Args:
        network: the network.
        processes: who trains together.
        stream: of real samples.
        seed: of times and noise.
    """

    def __init__(self, network: DiT, processes: Processes, *, stream: SampleStream, seed: int) -> None:
        super().__init__(network, processes)
        self._stream, self._seed = stream, seed
        self.samples_per_step = stream.batch_size

    @property
    def rows_per_step(self) -> int:
        """Images of a step."""
        return self.samples_per_step

    def module(self) -> nn.Module:
        """Return the network."""
        return self.network

    def begin(self, step: int) -> FlowStep:
        """Load the real samples and draw noise and times."""
        data, class_ids = self._stream.all(step)
        draws = step_generator(step, self._seed)
        noise = torch.randn(data.shape, generator=draws).to(data.device)
        time = torch.rand(len(data), generator=draws).to(data.device)
        return FlowStep(data, class_ids, noise, time, self.network.draw_noise_labels(len(data), data.device, draws))

    def loss(self, module: nn.Module, step: FlowStep, rows: slice) -> tuple[Tensor, Metrics]:
        """Return the mean squared error of the velocity."""
        data, class_ids, noise, time, styles = (value[rows] for value in step)
        t = time.reshape(-1, 1, 1, 1)
        velocity = module((1 - t) * noise + t * data, class_ids, TIME_SCALE * time, styles)
        loss = (velocity.float() - (data - noise)).square().mean()
        return loss, {"velocity_mse": loss.detach()}

    def close(self) -> None:
        """End the worker processes of the stream."""
        self._stream.close()


@torch.no_grad()
def integrate_flow(network: DiT, noise: Tensor, class_ids: Tensor, styles: Tensor, num_steps: int) -> Tensor:
    """Follow the velocity from noise to data by Euler steps.

    Args:
        network: trained by `FlowObjective`.
        noise: [B, C, H, W].
        class_ids: [B].
        styles: style indices, [B, noise_coords].
        num_steps: network evaluations.

    Returns:
        [B, C, H, W].
    """
    x = noise
    for step in range(num_steps):
        x = x + network(x, class_ids, TIME_SCALE * step / num_steps, styles) / num_steps
    return x
