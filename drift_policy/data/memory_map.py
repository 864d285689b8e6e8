"""Decoded copies of stored columns as .npy files, mapped into memory instead of loaded."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from drift_policy.data.cache import cache_folder


def memory_mapped(
    path: Path,
    array_path: str,
    decode: Callable[[Callable[[DTypeLike], NDArray[Any]]], NDArray[Any]],
    shape: tuple[int, ...],
    cache_dir: str | Path | None = None,
    *,
    files: Sequence[Path] | None = None,
) -> NDArray[Any]:
    """Return an array of a data set as a read-only memory map, decoding it at the first call.

    The .npy file is found again by the path, size and time of change of the stored files, so data that changed are
    decoded anew.

    Args:
        path: the file or folder of the data set.
        array_path: the array inside it, such as "data/img".
        decode: called with a function that allocates memory of `shape` for a dtype; fills it and returns it.
        shape: shape of the array.
        cache_dir: folder of the .npy files; None is `memory_map` in the cache folder.
        files: the stored files that the array depends on, below `path`; None is the folder `array_path`, or `path`
            itself if it is a file.
    """
    folder = cache_folder() / "memory_map" if cache_dir is None else Path(cache_dir)
    target = folder / f"{Path(array_path).name}-{_fingerprint(path, array_path, files)}.npy"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside the target and renamed, so that an interrupted run leaves no half-filled file to be trusted.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            unfinished = Path(temporary) / "array.npy"
            decode(lambda dtype: open_memmap(unfinished, mode="w+", dtype=np.dtype(dtype), shape=shape))
            os.replace(unfinished, target)
    mapped: NDArray[Any] = np.load(target, mmap_mode="r", allow_pickle=False)
    return mapped


def _fingerprint(path: Path, array_path: str, files: Sequence[Path] | None) -> str:
    if files is None:
        stored = path / array_path if path.is_dir() else path
        files = sorted(file for file in stored.rglob("*") if file.is_file()) if stored.is_dir() else [stored]
    state = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([str(path.resolve()), array_path, state]).encode()).hexdigest()[:32]
