"""Writing replay buffers in the zarr layout of Diffusion Policy, for bundled demonstrations and conversions."""

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numcodecs
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore, ZipStore

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

CHUNK_BYTES = 2 * 2**20


def write_zarr(
    path: str | Path, buffer: ReplayBuffer, *, zarr_format: Literal[2, 3] = 3, compression_level: int = 5
) -> None:
    """Write `data/<column>` and `meta/episode_ends` to a folder, or to one file if the path ends in .zip.

    Args:
        path: where to write; must not exist.
        buffer: what to write, in its dtypes.
        zarr_format: 3, or 2 for programs that use zarr-python 2.
        compression_level: of Blosc zstd with bit shuffling, 0 (none) to 9 (smallest and slowest).

    Raises:
        DataError: the path exists already.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} exists already: choose another path or delete it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        unfinished = Path(temporary) / path.name
        is_zip = path.suffix == ".zip"
        store: LocalStore | ZipStore = ZipStore(unfinished, mode="w") if is_zip else LocalStore(unfinished)
        root = zarr.create_group(store, zarr_format=zarr_format)
        data = root.create_group("data")
        for name, column in buffer.data.items():
            _write_array(data, name, column, compression_level)
        _write_array(root.create_group("meta"), "episode_ends", buffer.episode_ends, compression_level)
        store.close()
        os.replace(unfinished, path)


def _write_array(group: zarr.Group, name: str, values: NDArray[Any], compression_level: int) -> None:
    row_bytes = values.nbytes // len(values)
    rows = min(len(values), max(1, CHUNK_BYTES // max(1, row_bytes)))
    compressor: Any
    if group.metadata.zarr_format == 2:
        compressor = numcodecs.Blosc(cname="zstd", clevel=compression_level, shuffle=numcodecs.Blosc.BITSHUFFLE)
    else:
        compressor = BloscCodec(cname="zstd", clevel=compression_level, shuffle="bitshuffle")
    group.create_array(
        name,
        data=values,
        chunks=(rows, *values.shape[1:]),
        compressors=compressor,
        config={"write_empty_chunks": True},  # so that a missing chunk always means damage to the reader
    )
