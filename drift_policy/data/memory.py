"""Memory for a column of demonstrations, refused in words where the system would end the program without any."""

import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from drift_policy.errors import DataError

# Linux: the memory of the machine, and what a container may use of it and uses.
_MEMORY_INFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
_columns: list[weakref.ReferenceType[NDArray[Any]]] = []  # all that were made here


def in_memory(shape: Sequence[int], path: Path, name: str) -> Callable[[DTypeLike], NDArray[Any]]:
    """Return a function that makes an empty array of this shape and a given dtype, if there is memory for it.

    The function raises `DataError` if the array is larger than the free memory. Of several processes that torchrun
    started on this machine, every one keeps all columns; the first one asks for all of them, and the others do not ask:
    they load at the same time, so each would find the same memory free.

    Args:
        shape: of the array.
        path: of the data set, for the message.
        name: of the column, for the message.
    """

    def allocate(dtype: DTypeLike) -> NDArray[Any]:
        size, processes = math.prod(shape) * np.dtype(dtype).itemsize, _asked_for()
        needed, free = processes * size + (processes - 1) * _held(), free_memory()
        if processes and free is not None and needed > free:
            shared = f", with those before it in {processes} processes," if processes > 1 else ""
            raise DataError(
                f"{path}: '{name}'{shared} needs {needed / 1e9:.3g} GB of memory, but {free / 1e9:.3g} GB are free: "
                "keep it on disk with task.dataset.memory_map=true (zarr, HDF5 and LeRobot), or read smaller images."
            )
        array: NDArray[Any] = np.empty(shape, dtype)
        _columns.append(weakref.ref(array))
        return array

    return allocate


def _asked_for() -> int:
    """Return how many processes this one asks for memory for: the first of a machine for all, the others for none."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # set by torchrun, as is the number
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_first else 0


def _held() -> int:
    """Return the bytes of the columns that this process holds, which every other process will hold too."""
    return sum(array.nbytes for column in _columns if (array := column()) is not None)


def free_memory() -> int | None:
    """Return the bytes that this program can still use, None where the system does not tell."""
    known = [number for number in (_of_machine(), _of_container()) if number is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _of_container() -> int | None:
    try:
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        numbers = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        return limit - used + int(numbers["inactive_file"])  # cached files give way
    except (OSError, ValueError, KeyError):  # no container, no limit ("max"), or another system
        return None
