"""Replay buffers in one NumPy .npz archive: columns [N, ...] and `episode_ends` [E] side by side.

Other arrays, such as the start of each episode, may lie beside them: only arrays that are named are read.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

EPISODE_ENDS = "episode_ends"
GET_AGAIN = "Delete it, then download or copy the data set again."


def read_npz(path: str | Path, columns: Sequence[str]) -> ReplayBuffer:
    """Read columns of an .npz archive into memory, in the stored dtype.

    Args:
        path: the archive; `episode_ends` [E] in it says where episodes end.
        columns: names of arrays with one row a step, [N, ...].

    Raises:
        DataError: the archive or a column is missing or damaged, or the content is no valid replay buffer.
    """
    arrays = read_arrays(path, [*columns, EPISODE_ENDS])
    ends = arrays.pop(EPISODE_ENDS)
    try:
        return ReplayBuffer(arrays, ends)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def count_npz(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of an .npz archive after checking the checksum of every array in it.

    Raises:
        DataError: the archive is missing or damaged, or the episode ends are not valid.
    """
    ends = read_arrays(path, [EPISODE_ENDS])[EPISODE_ENDS]
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except Exception as error:  # zlib raises exceptions of its own on damaged bytes
            raise _damaged(path, "an array", error) from error
    if damaged is not None:
        raise DataError(f"{path}: {damaged} is damaged: its checksum is wrong. {GET_AGAIN}")
    steps = int(ends[-1]) if ends.ndim == 1 and len(ends) else 0
    try:
        buffer = ReplayBuffer({"step": np.arange(steps)}, ends)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return buffer.n_episodes, buffer.n_steps


def read_arrays(path: str | Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of an .npz archive. Nothing in the archive is executed: pickled objects are refused.

    Raises:
        DataError: the archive is missing or damaged, or an array is missing or does not hold numbers in rows.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist: expected an .npz archive with demonstrations.")
    arrays = {}
    with _open(path) as archive:
        for name in names:
            if name not in archive.files:
                raise DataError(f"{path} has no array '{name}': its arrays are {sorted(archive.files)}.")
            try:
                array = archive[name]
            except Exception as error:  # zipfile, zlib and numpy raise exceptions of their own on damaged bytes
                raise _damaged(path, f"'{name}'", error) from error
            if array.dtype.kind not in "biuf" or array.ndim == 0:
                raise DataError(
                    f"{path}: '{name}' must be an array of numbers in rows, but has dtype {array.dtype} and shape "
                    f"{list(array.shape)}."
                )
            arrays[name] = array
    return arrays


def _open(path: Path) -> NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a folder, another format and damaged bytes each raise something else
        raise _damaged(path, "it", error) from error
    if not isinstance(archive, NpzFile):
        raise DataError(f"{path} is a single array, not an .npz archive: write it with numpy.savez_compressed.")
    return archive


def _damaged(path: str | Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: {what} cannot be read ({type(error).__name__}: {error}). The file is damaged, holds objects instead "
        f"of numbers, or is not an .npz archive. {GET_AGAIN}"
    )
