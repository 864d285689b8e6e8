"""Checks that a zarr array is stored completely and safely, which zarr itself does not make."""

import json
import math
from pathlib import Path
from typing import Any

import zarr

from drift_policy.errors import DataError

GET_AGAIN = "Delete it, if it is a copy, then download or copy the data set again."
METADATA_FILES = (".zarray", ".zattrs", "zarr.json")
BLOSC_HEADER_BYTES = 16


def check_array(array: zarr.Array[Any], path: Path, name: str) -> None:
    """Require a numeric array with rows that needs no unpickling; `path` and `name` are for the message.

    Raises:
        DataError: another dtype or shape, or the pickle codec.
    """
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DataError(
            f"{path}: '{name}' must be an array of numbers with one row per step, but has dtype {array.dtype} and "
            f"shape {list(array.shape)}: name only the columns that are needed."
        )
    if any("pickle" in json.dumps(codec, default=str) for codec in _codecs(array)):
        # A data set must not be able to run code: the pickle codec would execute what a chunk contains.
        raise DataError(f"{path}: '{name}' is stored with the pickle codec, which is refused as unsafe.")


def check_chunks_exist(array: zarr.Array[Any], path: Path, name: str) -> None:
    """Require that every chunk is stored.

    zarr reads a chunk that is not stored as the fill value, so an interrupted copy would turn into demonstrations of
    zeros without a word. A writer may also leave out chunks that hold only the fill value (zarr-python 3 does so by
    default, the zarr 2 of Diffusion Policy does not). Nothing in the file tells the two cases apart, so the person who
    knows has to say so.

    Raises:
        DataError: a chunk is missing.
    """
    # Shards are counted whole: what is missing within one is written in its index, which has a checksum.
    stored_unit = array.shards or array.chunks
    n_units = math.prod(math.ceil(size / unit) for size, unit in zip(array.shape, stored_unit, strict=True))
    chunks_per_unit = math.prod(stored_unit) // math.prod(array.chunks)
    n_stored = array.nchunks_initialized // chunks_per_unit
    if n_stored != n_units:
        raise DataError(
            f"{path}: '{name}' has {n_stored} of its {n_units} stored chunks: the copy is incomplete. {GET_AGAIN} "
            "If its writer left out chunks that hold only the fill value, read it with "
            "allow_missing_chunks=True (+task.dataset.options.allow_missing_chunks=true)."
        )


def check_blosc_sizes(array: zarr.Array[Any], path: Path, name: str) -> None:
    """Require that each Blosc chunk in a folder has the length that its header states.

    The decoder trusts the header: for a chunk that was cut short it reads on past the end of the bytes and returns
    whatever lies there. In a .zip, the checksum of the zip entry reveals the damage.

    Raises:
        DataError: a chunk file is too short or too long.
    """
    codecs = _codecs(array)
    outermost = codecs[-1] if codecs else {}
    if not path.is_dir() or "blosc" not in (outermost.get("id"), outermost.get("name")):
        return
    for file in (path / array.path).rglob("*"):
        if file.is_file() and file.name not in METADATA_FILES:
            with file.open("rb") as opened:
                header = opened.read(BLOSC_HEADER_BYTES)
            # Bytes 12 to 16 of the Blosc 1 header: the compressed size, header included, little-endian.
            stated, found = int.from_bytes(header[12:16], "little"), file.stat().st_size
            if found < BLOSC_HEADER_BYTES or stated != found:
                raise DataError(
                    f"{path}: '{name}' is damaged: chunk {file.relative_to(path)} has {found} bytes, but its header "
                    f"states {stated}. {GET_AGAIN}"
                )


def _codecs(array: zarr.Array[Any]) -> list[dict[str, Any]]:
    """Return what is applied to a chunk when it is written, in this order: dictionaries with an "id" (v2) or "name"."""
    metadata: dict[str, Any] = dict(array.metadata.to_dict())
    if "codecs" in metadata:
        return list(metadata["codecs"])
    return [*(metadata["filters"] or ()), *([metadata["compressor"]] if metadata["compressor"] else ())]
