"""Training batches: windows of observations and actions, gathered by index on any device.

Needs torch alone, so that prepared tensors can be trained on where no data reader is installed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_policy.encoders.spec import CHANNELS


class Neighbours(NamedTuple):
    """The k windows whose chunks attract the samples of each window, the window itself first."""

    windows: Tensor  # [W, k] integers in 0 .. W-1
    weights: Tensor  # [W, k] float32, 1 for each window in sum


class WindowBatches:
    """W windows of Tp steps over tensors that hold N steps each.

    All tensors lie on one device and batches are gathered there by row number.

    Args:
        observations: key -> numbers [N, D] float32, or images [N, H, W, C] or [N, C, H, W] uint8.
        action: [N, Da] float32.
        rows: the steps of each window, [W, Tp] integers in 0 .. N-1.
        n_obs_steps: leading steps of a window that are observed, To.

    Attributes:
        neighbours: further chunks for each window of a batch, on the same device; None for none.
    """

    neighbours: Neighbours | None = None

    def __init__(self, observations: Mapping[str, Tensor], action: Tensor, rows: Tensor, n_obs_steps: int) -> None:
        self.observations = dict(observations)
        self.action = action
        self.rows = rows
        self.n_obs_steps = n_obs_steps

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        """Device that holds the data and the batches."""
        return self.rows.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on the device."""
        tensors = [*self.observations.values(), self.action, self.rows, *(self.neighbours or ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, device: torch.device | str) -> Self:
        """Move all tensors to the device and return self."""
        self.observations = {key: tensor.to(device) for key, tensor in self.observations.items()}
        self.action = self.action.to(device)
        self.rows = self.rows.to(device)
        if self.neighbours is not None:
            self.neighbours = Neighbours(*(tensor.to(device) for tensor in self.neighbours))
        return self

    def batch(self, indices: Tensor | NDArray[Any]) -> dict[str, Any]:
        """Gather the windows with these numbers, [B] integers in 0 .. W-1, on the device of the data.

        Returns:
            {"obs": {key: [B,To,D] float32 or [B,To,C,H,W] uint8}, "action": [B,Tp,Da] float32}, in the units of the
            data. Steps before or after the episode repeat its first or last step. Images that are stored with their
            channels last are a view with the channels first, which keeps the memory layout that convolutions like.
            With neighbours also {"positives": [B,k,Tp,Da] float32, "positive_weights": [B,k] float32}.
        """
        windows = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        rows = self.rows[windows]
        observed = rows[:, : self.n_obs_steps]
        batch: dict[str, Any] = {
            "obs": {key: _channels_first(tensor[observed]) for key, tensor in self.observations.items()},
            "action": self.action[rows],
        }
        if self.neighbours is not None:
            batch["positives"] = self.action[self.rows[self.neighbours.windows[windows]]]
            batch["positive_weights"] = self.neighbours.weights[windows]
        return batch


def is_image(tensor: Tensor) -> bool:
    """Whether a tensor of the data holds images: those alone stay bytes."""
    return tensor.dtype == torch.uint8


def _channels_first(gathered: Tensor) -> Tensor:
    """Show images [B, To, H, W, C] as [B, To, C, H, W]; leave everything else as it is."""
    is_channels_last = is_image(gathered) and gathered.shape[-1] in CHANNELS
    return gathered.movedim(-1, -3) if is_channels_last else gathered
