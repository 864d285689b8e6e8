"""Encoder of low-dimensional observations."""

from torch import Tensor, nn


class StateEncoder(nn.Module):
    """Concatenate the observation steps of a low-dimensional key.

    Args:
        size: dimensions of one step, Do.
        n_obs_steps: observation steps, To.
    """

    def __init__(self, size: int, n_obs_steps: int) -> None:
        super().__init__()
        self.output_size = size * n_obs_steps

    def forward(self, value: Tensor) -> Tensor:
        """Map normalised observations [B, To, Do] to [B, To * Do]."""
        return value.flatten(start_dim=1)
