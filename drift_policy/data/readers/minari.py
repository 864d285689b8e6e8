"""Data sets in Minari's HDF5 format: `episode_<i>/{observations, actions, rewards, terminations, truncations}`.

Spaces of several parts are groups, such as `observations/desired_goal/kettle`; the parts of a tuple are called
`_index_<i>`. An episode of T steps has T actions and T+1 observations, of which the last has no action and is left out.
The episode's attribute `total_steps` (`total_timesteps` up to Minari 0.3) states T.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.readers.hdf5 import (
    GET_AGAIN,
    check_numbers,
    child_array,
    child_group,
    copy_rows,
    integer_attribute,
    members,
    open_hdf5,
)
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

if TYPE_CHECKING:
    import h5py

MAIN_FILE = Path("data/main_data.hdf5")  # in the folder of a data set
REWARDS = "rewards"  # one number a step in every data set, whatever its spaces are
ONE_ROW_MORE = "observations"  # its arrays have T+1 rows
STEP_COUNTS = ("total_steps", "total_timesteps")
HINT = "Name an array of the episodes, such as 'actions' or 'observations/observation'."


@dataclass(frozen=True)
class _Episode:
    group: "h5py.Group"
    n_steps: int


def read_minari(path: str | Path, columns: Sequence[str]) -> ReplayBuffer:
    """Read columns of a Minari data set into memory, in the stored dtype; episodes in numerical order.

    Args:
        path: the folder of a data set, such as ~/.minari/datasets/D4RL/kitchen/complete-v2, or its main_data.hdf5.
        columns: paths of arrays inside an episode: "actions", "observations" (Box) or "observations/<key>" (Dict).

    Raises:
        ConfigurationError: h5py is not installed.
        DataError: the file, an episode or a column is missing, damaged or of another shape or type. The message names
            the path inside the file.
    """
    path = _file(path)
    with open_hdf5(path) as file:
        episodes = _episodes(file, path)
        data = {name: _read_column(episodes, name, path) for name in columns}
    return ReplayBuffer(data, np.cumsum([episode.n_steps for episode in episodes]))


def count_minari(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of a data set after checking the sizes that it states; errors as `read_minari`."""
    path = _file(path)
    with open_hdf5(path) as file:
        episodes = _episodes(file, path)
    return len(episodes), sum(episode.n_steps for episode in episodes)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / MAIN_FILE if path.is_dir() else path


def _episodes(file: "h5py.File", path: Path) -> list[_Episode]:
    """Return all episodes in numerical order, with their lengths checked against those that the file states."""
    numbers = {}
    for name in members(file, path):
        match = re.fullmatch(r"episode_([0-9]{1,15})", name)
        if match is None:
            raise DataError(
                f"{path}: '{name}' is no episode: a Minari file holds groups episode_<number> and no other."
            )
        numbers[name] = int(match.group(1))
    if not numbers:
        raise DataError(f"{path} has no episodes: expected a Minari data set, with groups episode_<number>.")
    episodes = [_episode(file, name, path) for name in sorted(numbers, key=lambda name: (numbers[name], name))]
    found = {"total_episodes": len(episodes), "total_steps": sum(episode.n_steps for episode in episodes)}
    for attribute, number in found.items():
        stated = integer_attribute(file, attribute, path)  # up to Minari 0.4; later it is in metadata.json
        if stated not in (None, number):
            raise DataError(f"{path}: attribute '{attribute}' states {stated}, but the file has {number}. {GET_AGAIN}")
    return episodes


def _episode(file: "h5py.File", name: str, path: Path) -> _Episode:
    group = child_group(file, name, path)
    rewards = child_array(group, REWARDS, path, GET_AGAIN)
    check_numbers(rewards, path)
    for attribute in STEP_COUNTS:
        stated = integer_attribute(group, attribute, path)
        if stated not in (None, len(rewards)):
            raise DataError(
                f"{path}: '{name}/{REWARDS}' has {len(rewards)} steps, but {attribute} of the episode is {stated}. "
                f"{GET_AGAIN}"
            )
    return _Episode(group, len(rewards))


def _read_column(episodes: list[_Episode], name: str, path: Path) -> NDArray[Any]:
    arrays = [_array(episode, name, path) for episode in episodes]
    first = arrays[0]
    for array in arrays:
        if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
            raise DataError(
                f"{path}: '{array.name.lstrip('/')}' has rows {list(array.shape[1:])} of {array.dtype}, but those of "
                f"'{first.name.lstrip('/')}' are {list(first.shape[1:])} of {first.dtype}: all must be alike."
            )
    # Room for the last observation of the last episode; that of any other is overwritten by the next episode.
    column = np.empty((sum(episode.n_steps for episode in episodes) + 1, *first.shape[1:]), first.dtype)
    start = 0
    for episode, array in zip(episodes, arrays, strict=True):
        copy_rows(array, column, start, path)
        start += episode.n_steps
    return column[:start]


def _array(episode: _Episode, name: str, path: Path) -> "h5py.Dataset":
    """Return an array of an episode by its path in it, checked to have a row for every step."""
    *groups, last = name.split("/")
    parent = episode.group
    for group in groups:
        parent = child_group(parent, group, path, HINT)
    array = child_array(parent, last, path, HINT)
    check_numbers(array, path)
    expected = episode.n_steps + (name.split("/")[0] == ONE_ROW_MORE)
    if len(array) != expected:
        raise DataError(
            f"{path}: '{array.name.lstrip('/')}' has {len(array)} rows, but {expected} belong to an episode of "
            f"{episode.n_steps} steps. {GET_AGAIN}"
        )
    return array
