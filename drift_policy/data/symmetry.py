"""Demonstrations and their mirror images: a task that looks the same in a mirror has every demonstration twice."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import ConfigurationError, DataError

# Columns of N steps, as a replay buffer has them -> the same columns of the transformed steps.
Symmetry = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def find_symmetry(name: str) -> Symmetry:
    """Return the function that a task's configuration names as "module:function".

    Raises:
        ConfigurationError: no such name, module or function.
    """
    module, separator, function = name.partition(":")
    if not (separator and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ConfigurationError(f"task.symmetry must be 'module:function' or null, but is {name!r}.")
    try:
        found: Symmetry = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"task.symmetry names {name!r}, which cannot be imported ({error}): run from the repository root, correct "
            "the name, or set task.symmetry=null."
        ) from error
    return found


def with_mirror_images(buffer: ReplayBuffer, symmetry: Symmetry) -> ReplayBuffer:
    """Return the E episodes of the buffer followed by their mirror images, 2 E episodes.

    The symmetry is given read-only columns: one that mirrors in place would change the demonstrations too.

    Raises:
        DataError: the symmetry does not know a column, writes to one, or returns other columns, shapes or types.
    """
    given = {name: column.view() for name, column in buffer.data.items()}
    for column in given.values():
        column.flags.writeable = False
    try:
        mirrored = symmetry(given)
    except KeyError as error:
        raise DataError(f"task.symmetry does not fit these demonstrations: {error.args[0]}. Set it to null.") from error
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise DataError("task.symmetry writes to the columns that it is given: let it return new ones.") from error
    layout = {name: (column.shape, column.dtype) for name, column in buffer.data.items()}
    returned = {name: (column.shape, column.dtype) for name, column in mirrored.items()}
    if returned != layout:
        raise DataError(f"task.symmetry must return columns like those it is given, {layout}, but returned {returned}.")
    data = {name: np.concatenate([column, mirrored[name]]) for name, column in buffer.data.items()}
    return ReplayBuffer(data, np.concatenate([buffer.episode_ends, buffer.n_steps + buffer.episode_ends]))
