"""Encoder of low-dimensional observations."""

from torch import Tensor, nn


class StateEncoder(nn.Module):
    """Pass a low-dimensional key on as it is: normalised numbers need no encoding.

    Args:
        size: dimensions of one step, Do.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.output_size = size

    def forward(self, value: Tensor) -> Tensor:
        """Return the features [B, To, Do] of normalised observations [B, To, Do]."""
        return value
