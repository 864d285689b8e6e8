"""Replay buffers in zarr, Diffusion Policy's format: `data/<column>` [N, ...] and `meta/episode_ends` [E].

Reads zarr v2 and v3, as a folder or a .zip whose top level is the zarr group.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numcodecs.errors import UnknownCodecError
from numpy.typing import DTypeLike, NDArray
from zarr.storage import LocalStore, ZipStore

from drift_policy.data.blocks import row_blocks
from drift_policy.data.memory import in_memory
from drift_policy.data.memory_map import memory_mapped
from drift_policy.data.readers.zarr_integrity import GET_AGAIN, check_array, check_blosc_sizes, check_chunks_exist
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

EPISODE_ENDS = "meta/episode_ends"
IMAGE_CHANNELS = (1, 3, 4)
# Of zarr v2, which asks numcodecs for its codecs, and of v3, where older releases of zarr have no error of their own.
_UNKNOWN_CODEC = (UnknownCodecError, getattr(zarr.errors, "UnknownCodecError", UnknownCodecError))


def read_zarr(
    path: str | Path,
    columns: Sequence[str] | None = None,
    memory_map: bool = False,
    cache_dir: str | Path | None = None,
    *,
    allow_missing_chunks: bool = False,
) -> ReplayBuffer:
    """Read columns of a zarr replay buffer.

    Columns keep their stored dtype, except that float images ([N,H,W,C] or [N,C,H,W]) whose values are all whole
    numbers in 0..255 become uint8. Arrays are decoded a few chunks at a time: no float copy of all images ever exists.

    Args:
        path: a zarr folder or .zip file.
        columns: names under `data/` to read; None reads all of them.
        memory_map: decode each column once into a .npy file in the cache and map that file instead of filling RAM.
        cache_dir: folder of those .npy files; None is `memory_map` in the cache folder.
        allow_missing_chunks: read chunks without a stored file as the array's fill value.

    Raises:
        DataError: the path, a column or a chunk is missing or damaged, a column needs a codec that is not registered,
            or the content is no valid replay buffer.
    """
    path = Path(path)
    with open_zarr(path) as group:
        arrays = _select_columns(group, path, columns)
        data = {}
        for name, array in arrays.items():
            _check_complete(array, path, name, allow_missing_chunks)
            with _damage_reported(path, f"column '{name}'"):
                if memory_map:
                    data[name] = memory_mapped(path, f"data/{name}", _decoder(array), array.shape, cache_dir)
                else:
                    data[name] = _decoder(array)(in_memory(array.shape, path, name))
        return ReplayBuffer(data, _read_episode_ends(group, path))


def count_zarr(path: str | Path, *, allow_missing_chunks: bool = False) -> tuple[int, int]:
    """Return (episodes, steps) of a zarr replay buffer after checking that every chunk of every column is stored.

    Args:
        path: a zarr folder or .zip file.
        allow_missing_chunks: as in `read_zarr`.

    Raises:
        DataError: the path, a column or a chunk is missing, or the episode ends are not valid.
    """
    path = Path(path)
    with open_zarr(path) as group:
        for name, array in _select_columns(group, path, None).items():
            _check_complete(array, path, name, allow_missing_chunks)
        ends = _read_episode_ends(group, path)
    buffer = ReplayBuffer({"step": np.arange(ends[-1] if len(ends) else 0)}, ends)
    return buffer.n_episodes, buffer.n_steps


@contextmanager
def open_zarr(path: Path) -> Iterator[zarr.Group]:
    """Open the top-level group of a zarr folder or .zip for reading; DataError if there is none."""
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a zarr folder or .zip with demonstrations.")
    store: LocalStore | ZipStore = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
    with _damage_reported(path, "its group metadata"):
        group = zarr.open_group(store, mode="r")
    try:
        yield group
    finally:
        store.close()


def _select_columns(group: zarr.Group, path: Path, columns: Sequence[str] | None) -> dict[str, zarr.Array[Any]]:
    with _damage_reported(path, "the group of columns"):
        data = group.get("data")
    if not isinstance(data, zarr.Group) or EPISODE_ENDS not in group:
        raise DataError(f"{path} is not a replay buffer: it must hold the arrays data/<column> and {EPISODE_ENDS}.")
    if columns is None:
        with _damage_reported(path, "the list of columns"):
            columns = sorted(data.array_keys())
    arrays = {}
    for name in columns:  # the others are not even opened: they may need codecs that are not installed
        with _damage_reported(path, f"column '{name}'"):
            array = data.get(name)
        if not isinstance(array, zarr.Array):
            raise DataError(f"{path} has no column '{name}': its columns are {sorted(data.array_keys())}.")
        check_array(array, path, name)
        arrays[name] = array
    return arrays


def _read_episode_ends(group: zarr.Group, path: Path) -> NDArray[Any]:
    array = group[EPISODE_ENDS]
    if not isinstance(array, zarr.Array):
        raise DataError(f"{path}: {EPISODE_ENDS} must be an array, but is a group.")
    check_array(array, path, EPISODE_ENDS)
    _check_complete(array, path, EPISODE_ENDS)
    with _damage_reported(path, EPISODE_ENDS):
        return np.asarray(array[:])


def _check_complete(array: zarr.Array[Any], path: Path, name: str, allow_missing_chunks: bool = False) -> None:
    with _damage_reported(path, f"the list of chunks of '{name}'"):
        if not allow_missing_chunks:
            check_chunks_exist(array, path, name)
        check_blosc_sizes(array, path, name)


def _decoder(array: zarr.Array[Any]) -> Callable[[Callable[[DTypeLike], NDArray[Any]]], NDArray[Any]]:
    """Return a function that decodes the whole array into memory that its argument allocates for a dtype."""

    def decode(allocate: Callable[[DTypeLike], NDArray[Any]]) -> NDArray[Any]:
        if _may_hold_bytes(array):
            target = allocate(np.uint8)
            if _copy_exactly(array, target):
                return target
        target = allocate(array.dtype)
        _copy_exactly(array, target)
        return target

    return decode


def _may_hold_bytes(array: zarr.Array[Any]) -> bool:
    is_image = array.ndim == 4 and (array.shape[1] in IMAGE_CHANNELS or array.shape[3] in IMAGE_CHANNELS)
    return is_image and array.dtype.kind == "f"


def _copy_exactly(array: zarr.Array[Any], target: NDArray[Any]) -> bool:
    """Copy [N, ...] block by block; stop and return False once a value is changed by the dtype of `target`."""
    rows_per_chunk = (array.shards or array.chunks)[0]
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    for block in row_blocks(array.shape[0], row_bytes, rows_per_chunk):
        values = np.asarray(array[block])
        with np.errstate(invalid="ignore"):  # NaN or 1e9 as uint8 is undefined, and unequal to the value, as wanted
            target[block] = values.astype(target.dtype)
        if target.dtype != values.dtype and not np.array_equal(target[block], values):
            return False
    return True


@contextmanager
def _damage_reported(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except _UNKNOWN_CODEC as error:
        codec = str(error).partition(":")[2].strip(" '")
        raise DataError(
            f"{path}: {what} cannot be read because the codec '{codec}' is not registered; that says nothing against "
            "the file. Install the package that has it (for imagecodecs_..., as in the images of Diffusion Policy's "
            "real robots: pip install imagecodecs), register it in a module of yours (import imagecodecs.numcodecs; "
            "imagecodecs.numcodecs.register_codecs()), and name that module in plugins=[...]."
        ) from error
    except Exception as error:  # every codec, zipfile and json raise exceptions of their own on damaged bytes
        raise DataError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {error}). The file is damaged or not a zarr "
            f"replay buffer. {GET_AGAIN}"
        ) from error
