"""The windows of a replay buffer: which columns an observation and an action are made of."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.window_batches import WindowBatches, is_image
from drift_policy.data.windows import Windows
from drift_policy.encoders.spec import CHANNELS
from drift_policy.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Column:
    """A column of the replay buffer, or a range of its numbers: `data[name]` as [N, D], then [:, start:stop]."""

    name: str  # name of the column in the replay buffer
    start: int | None = None  # first number to take of each step; None is the first
    stop: int | None = None  # one after the last number to take; None takes all to the end


class WindowDataset(WindowBatches):
    """W windows of Tp steps of a replay buffer, as batches for `policy.compute_loss`.

    Low-dimensional columns are copied as float32 [N, D] in the units of the data; images stay uint8 in the layout in
    which they are stored (channels first or last) and share memory with the buffer until `to` moves them.

    Args:
        buffer: the demonstrations.
        observations: key of the batch -> the columns whose numbers are concatenated, or exactly one uint8 image column.
        action: the columns whose numbers are concatenated to an action.
        horizon: steps of a window, Tp.
        n_obs_steps: leading steps of a window that are observed, To.
        n_action_steps: steps that the policy executes, Ta; sets how far windows overhang the end of an episode.
        episode_mask: [E], True for the episodes to cut windows from; None is all.

    Attributes:
        episodes: number of the episode that each window is cut from, [W].

    Raises:
        ConfigurationError: step counts or column ranges that cannot work.
        DataError: a column that the buffer does not have, an image that is not uint8, or a wrong mask.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        observations: Mapping[str, Sequence[Column]],
        action: Sequence[Column],
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episode_mask: NDArray[np.bool_] | None = None,
    ) -> None:
        if not observations or "action" in observations:
            raise ConfigurationError(
                f"observations needs at least one key, none of them 'action', but has {list(observations)}."
            )
        windows = Windows.create(
            buffer.episode_ends,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            episode_mask=episode_mask,
        )
        gathered = {key: _gather_key(buffer, key, columns) for key, columns in observations.items()}
        actions = _gather_key(buffer, "action", action)
        if is_image(actions):
            raise ConfigurationError(f"The action must be made of numbers, but '{action[0].name}' is an image column.")
        rows = windows.rows
        super().__init__(gathered, actions, torch.from_numpy(rows), n_obs_steps)
        self.episodes = np.searchsorted(buffer.episode_ends, rows[:, 0], side="right")

    def stats_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return every step of each low-dimensional key and of "action", [N, D] float32, to fit a normaliser on.

        As in Diffusion Policy these are all steps of the buffer, those of validation episodes included.
        """
        tensors = {**self.observations, "action": self.action}
        return {key: tensor.cpu().numpy() for key, tensor in tensors.items() if not is_image(tensor)}


def _gather_key(buffer: ReplayBuffer, key: str, columns: Sequence[Column]) -> Tensor:
    if not columns:
        raise ConfigurationError(f"Key '{key}' needs at least one column; the data have {sorted(buffer.data)}.")
    missing = [column.name for column in columns if column.name not in buffer.data]
    if missing:
        raise DataError(f"Key '{key}' needs the columns {missing}, but the data have {sorted(buffer.data)}.")
    arrays = [buffer.data[column.name] for column in columns]
    if any(array.ndim == 4 for array in arrays):
        return _image_tensor(arrays[0], key, columns)
    parts = [_numbers(array, column) for array, column in zip(arrays, columns, strict=True)]
    return torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float32))


def _numbers(array: NDArray[Any], column: Column) -> NDArray[Any]:
    flat = array.reshape(len(array), -1)
    start = 0 if column.start is None else column.start
    stop = flat.shape[1] if column.stop is None else column.stop
    if not 0 <= start < stop <= flat.shape[1]:
        raise ConfigurationError(
            f"Column '{column.name}' has {flat.shape[1]} numbers a step, so start={column.start}, stop={column.stop} "
            f"is not a range in it: 0 <= start < stop <= {flat.shape[1]} is expected."
        )
    return flat[:, start:stop]


def _image_tensor(array: NDArray[Any], key: str, columns: Sequence[Column]) -> Tensor:
    if len(columns) != 1 or columns[0].start is not None or columns[0].stop is not None:
        raise ConfigurationError(
            f"Key '{key}' holds an image, so it must be exactly one whole column, but is {list(columns)}: give every "
            "image a key of its own."
        )
    last, first = array.shape[3] in CHANNELS, array.shape[1] in CHANNELS
    if last == first:
        raise DataError(
            f"Image column '{columns[0].name}' has shape {list(array.shape)}: expected [N, H, W, C] or [N, C, H, W] "
            f"with C one of {CHANNELS}, and it must be clear which axis the channels are."
        )
    if array.dtype != np.uint8:
        raise DataError(
            f"Image column '{columns[0].name}' must be uint8 (0..255), but is {array.dtype}: convert the images, for "
            "example np.round(255 * images).astype(np.uint8) if they lie in 0..1."
        )
    with warnings.catch_warnings():
        # Memory-mapped images are read-only, which torch warns about; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)
