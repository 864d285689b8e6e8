"""Franka Kitchen demonstrations as a folder of padded NumPy arrays, the layout of Diffusion Policy's kitchen.zip.

Time is the first axis, T, and episodes the second, N: `observations_seq.npy` [T, N, 60], `actions_seq.npy` [T, N, 9]
and `existence_mask.npy` [T, N], which is 1 for the steps of an episode and 0 for the padding after them. The published
files have T = 409 and N = 566. Diffusion Policy's own KitchenLowdimDataset takes the first axis for the episodes (issue
61 of real-stanford/diffusion_policy); here every episode is one demonstration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

FILES = {"obs": "observations_seq.npy", "action": "actions_seq.npy"}  # column of the replay buffer -> file
MASK = "existence_mask.npy"
GET_AGAIN = "Delete the folder, then download or copy it again."


def read_kitchen_numpy(path: str | Path, columns: Sequence[str]) -> ReplayBuffer:
    """Read a folder of padded arrays as a replay buffer, one episode a demonstration, without the padding.

    Args:
        path: the folder.
        columns: "obs" [60] (joints of robot and objects, then goal numbers) and "action" [9], in the stored dtype.

    Raises:
        DataError: a file is missing or damaged, or its content does not fit the others; the message names it.
    """
    folder = Path(path)
    for name in columns:
        if name not in FILES:
            raise DataError(f"{folder} has no column '{name}': the columns of this format are {', '.join(FILES)}.")
    lengths = _episode_lengths(folder)
    data = {name: _read_column(folder / FILES[name], lengths, folder) for name in columns}
    try:
        return ReplayBuffer(data, np.cumsum(lengths))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def count_kitchen_numpy(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of a folder after checking that the arrays are complete; errors as reading."""
    folder = Path(path)
    lengths = _episode_lengths(folder)
    for file in FILES.values():
        _open(folder / file, lengths, folder)
    return len(lengths), int(lengths.sum())


def _episode_lengths(folder: Path) -> NDArray[np.int64]:
    """Return the steps of every episode, [N], from a mask that must be ones followed by zeros in every column."""
    mask = _load(folder / MASK)
    if mask.ndim != 2 or mask.size == 0:
        raise DataError(f"{folder / MASK}: the mask must have shape [T, N], but has {list(mask.shape)}. {GET_AGAIN}")
    exists = np.asarray(mask != 0)
    lengths = exists.sum(axis=0, dtype=np.int64)
    expected = np.arange(len(mask))[:, None] < lengths
    wrong = (exists != expected).any(axis=0) | (lengths == 0)
    if not np.isin(mask, (0, 1)).all() or wrong.any():
        where = f" in column {int(np.argmax(wrong))}" if wrong.any() else ""
        raise DataError(
            f"{folder / MASK}: every column must be ones, at least one, followed by zeros, but is not{where}. "
            f"Time is the first axis of these arrays. {GET_AGAIN}"
        )
    return lengths


def _read_column(file: Path, lengths: NDArray[np.int64], folder: Path) -> NDArray[Any]:
    padded = _open(file, lengths, folder)
    column = np.empty((int(lengths.sum()), padded.shape[2]), padded.dtype)
    start = 0
    for episode, length in enumerate(lengths):
        column[start : start + length] = padded[:length, episode]
        start += length
    return column


def _open(file: Path, lengths: NDArray[np.int64], folder: Path) -> NDArray[Any]:
    padded = _load(file)
    n_steps, n_episodes = _load(folder / MASK).shape
    if padded.ndim != 3 or padded.shape[:2] != (n_steps, n_episodes) or padded.shape[2] == 0:
        raise DataError(
            f"{file} has shape {list(padded.shape)}, but {MASK} asks for [{n_steps}, {n_episodes}, D]. {GET_AGAIN}"
        )
    return padded


def _load(file: Path) -> NDArray[Any]:
    """Open an array without reading it; pickled objects are refused, nothing is executed."""
    if not file.is_file():
        raise DataError(
            f"{file} does not exist: expected the folder `kitchen` of Diffusion Policy's kitchen.zip, which holds "
            f"{', '.join([*FILES.values(), MASK])}."
        )
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises ValueError, EOFError, OSError or tokenize.TokenError, as it happens
        raise DataError(
            f"{file} cannot be read ({type(error).__name__}: {error}). It is damaged, an incomplete copy, or holds "
            f"objects instead of numbers. {GET_AGAIN}"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise DataError(f"{file} must hold one array of numbers. {GET_AGAIN}")
    return array
