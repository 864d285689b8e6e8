"""Demonstrations in memory: columns of steps, one episode after the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.blocks import row_blocks
from drift_policy.errors import DataError


@dataclass(frozen=True)
class ReplayBuffer:
    """Columns of N steps that belong to E episodes, in the layout of Diffusion Policy's replay buffer.

    Raises:
        DataError: columns of different lengths or of a type that is not a number, NaN or infinity in a column, or
            `episode_ends` that do not rise strictly from at least 1 to N.
    """

    data: dict[str, NDArray[Any]]  # column name -> [N, ...] in the stored dtype
    episode_ends: NDArray[np.int64]  # [E] number of steps up to and including each episode; the last one is N

    def __post_init__(self) -> None:
        object.__setattr__(self, "episode_ends", _checked_episode_ends(self.episode_ends))
        if not self.data:
            raise DataError("A replay buffer needs at least one column, but `data` is empty.")
        for name, column in self.data.items():
            _check_length(name, column, self.n_steps)
            self._check_finite(name, column)

    @property
    def n_episodes(self) -> int:
        """Number of episodes, E."""
        return len(self.episode_ends)

    @property
    def n_steps(self) -> int:
        """Number of steps of all episodes together, N."""
        return int(self.episode_ends[-1])

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """Number of steps of each episode, [E]."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def nbytes(self) -> int:
        """Size of all columns in bytes (for memory-mapped columns: on disk)."""
        return sum(column.nbytes for column in self.data.values())

    def episode(self, index: int) -> dict[str, NDArray[Any]]:
        """Return views of one episode's columns, each [length, ...]; IndexError outside 0 .. E-1."""
        if not 0 <= index < self.n_episodes:
            raise IndexError(f"episode {index} does not exist: the buffer holds episodes 0 to {self.n_episodes - 1}")
        end = int(self.episode_ends[index])
        start = end - int(self.episode_lengths[index])
        return {name: column[start:end] for name, column in self.data.items()}

    def select_episodes(self, episodes: Sequence[int] | NDArray[Any]) -> "ReplayBuffer":
        """Return a copy that holds only the given episodes: a boolean mask [E], or episode numbers in the wanted order.

        Raises:
            DataError: no episode is selected, or a mask does not have length E.
        """
        chosen = np.asarray(episodes)
        if chosen.dtype == bool:
            if chosen.shape != (self.n_episodes,):
                raise DataError(f"An episode mask must have shape [{self.n_episodes}], but has {list(chosen.shape)}.")
            chosen = np.flatnonzero(chosen)
        if len(chosen) == 0:
            raise DataError(f"No episode is selected out of {self.n_episodes}: select at least one.")
        parts = [self.episode(int(index)) for index in chosen]
        data = {name: np.concatenate([part[name] for part in parts]) for name in self.data}
        return ReplayBuffer(data, np.cumsum(self.episode_lengths[chosen]))

    def summary(self) -> str:
        """Describe the buffer in one line: episodes, steps, megabytes, and each column's row shape and dtype."""
        columns = ", ".join(f"{name} {list(column.shape[1:])} {column.dtype}" for name, column in self.data.items())
        return f"{self.n_episodes} episodes, {self.n_steps:,} steps, {self.nbytes / 1e6:.1f} MB: {columns}"

    def content_hash(self) -> str:
        """Return a sha256 (hex) over column names, dtypes, shapes, values and episode ends.

        Equal content gives an equal hash however it was stored: zarr v2, v3 or zip, any chunking, compression, byte
        order or order of columns.
        """
        digest = hashlib.sha256()
        for name in sorted(self.data):
            _update_digest(digest, f"data/{name}", self.data[name])
        _update_digest(digest, "meta/episode_ends", self.episode_ends)
        return digest.hexdigest()

    def episode_hashes(self) -> list[str]:
        """Return a short hash (16 hex digits) of each episode's numbers: all columns but images and other tensors.

        It tells an episode again in another data set, for example in one to which episodes were added.
        """
        numbers = {name: column for name, column in sorted(self.data.items()) if column.ndim <= 2}
        hashes = []
        for end, length in zip(self.episode_ends.tolist(), self.episode_lengths.tolist(), strict=True):
            digest = hashlib.sha256()
            for name, column in numbers.items():
                _update_digest(digest, name, column[end - length : end])
            hashes.append(digest.hexdigest()[:16])
        return hashes

    def _check_finite(self, name: str, column: NDArray[Any]) -> None:
        if column.dtype.kind != "f":
            return
        for block in row_blocks(len(column), column.nbytes // max(1, len(column))):
            finite = np.isfinite(column[block]).reshape(block.stop - block.start, -1).all(axis=1)
            if not finite.all():
                step = block.start + int(np.argmin(finite))
                episode = int(np.searchsorted(self.episode_ends, step, side="right"))
                raise DataError(
                    f"Column '{name}' holds NaN or infinity, first at step {step} (episode {episode}). Every value "
                    "must be finite: repair or remove this episode."
                )


def _checked_episode_ends(episode_ends: NDArray[Any]) -> NDArray[np.int64]:
    ends = np.asarray(episode_ends)
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DataError(
            f"episode_ends must be integers of shape [E], but are {ends.dtype} of shape {list(ends.shape)}."
        )
    if len(ends) == 0:
        raise DataError("episode_ends is empty: at least one episode is needed.")
    ends = ends.astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if (lengths <= 0).any():
        first = int(np.argmax(lengths <= 0))
        raise DataError(
            f"episode_ends must be positive and strictly increasing, but episode {first} has {lengths[first]} steps."
        )
    return ends


def _check_length(name: str, column: NDArray[Any], n_steps: int) -> None:
    if column.dtype.kind not in "biuf":
        raise DataError(f"Column '{name}' must hold numbers, but has dtype {column.dtype}: leave this column out.")
    rows = column.shape[0] if column.ndim else 0
    if rows != n_steps:
        raise DataError(
            f"Column '{name}' has {rows} steps, but episode_ends end at step {n_steps}: "
            "the columns must be equally long."
        )


def _update_digest(digest: "hashlib._Hash", name: str, array: NDArray[Any]) -> None:
    little_endian = array.dtype.newbyteorder("<")
    digest.update(f"{name}|{little_endian.str}|{list(array.shape)}|".encode())
    for block in row_blocks(len(array), array.nbytes // max(1, len(array))):
        digest.update(np.ascontiguousarray(array[block], dtype=little_endian).data)
