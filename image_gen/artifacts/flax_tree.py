"""Trees of arrays in flax's msgpack format, read and written without JAX.

A tree is a map from names to trees; a leaf is msgpack extension type 1, whose payload is another msgpack value:
(shape, name of the type, bytes in C order). Arrays over 1 GiB are maps of several leaves. Python objects do not exist
in this format, so nothing can be executed; sizes are bounded by the file and by `MAX_*`.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drift_policy.errors import CheckpointError

try:
    import msgpack
except ImportError as error:
    raise CheckpointError(
        "Released artifacts are read with the package msgpack: pip install 'drift-policy[images]'. Folders that "
        "`python -m image_gen.artifacts.convert` has written need no such package."
    ) from error

MAX_NAMES = 100_000  # entries of a map
MAX_NAME_LENGTH = 256
MAX_DEPTH = 16
MAX_DIMENSIONS = 8
MAX_CHUNK_BYTES = 2**30  # what flax writes in one piece
GET_AGAIN = "Download the artifact again, or ask whoever wrote it."

_NDARRAY = 1
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # bfloat16 by its bits


def read_tree(path: Path) -> dict[str, Tensor]:
    """Read a file of nested maps of floating-point arrays.

    Returns:
        "outer/inner/name" -> tensor, float32 whatever the stored precision.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything but named floating-point arrays.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise CheckpointError(f"{path} is missing or empty. {GET_AGAIN}")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack.unpackb(
                content,
                raw=False,
                strict_map_key=True,
                ext_hook=_read_extension,
                max_str_len=MAX_NAME_LENGTH,
                max_map_len=MAX_NAMES,
                max_array_len=0,
                max_bin_len=0,
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error} {GET_AGAIN}") from error
    except (ValueError, msgpack.UnpackException, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or not a flax msgpack tree ({type(error).__name__}: {error}). {GET_AGAIN}"
        ) from error
    tensors: dict[str, Tensor] = {}
    try:
        _flatten(tree, "", tensors, depth=0)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error} {GET_AGAIN}") from error
    return tensors


def write_tree(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write "outer/inner/name" -> tensor as flax's `msgpack_serialize` does, in float32."""
    tree: dict[str, Any] = {}
    for name, tensor in sorted(tensors.items()):
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _pack(tensor.detach().cpu().float().contiguous().numpy())
    path.write_bytes(msgpack.packb(tree, strict_types=True))


def _pack(array: np.ndarray[Any, Any]) -> Any:
    if array.nbytes > MAX_CHUNK_BYTES:
        rows = MAX_CHUNK_BYTES // array.itemsize
        flat = array.reshape(-1)
        chunks = [flat[start : start + rows] for start in range(0, flat.size, rows)]
        return {
            _CHUNKED: True,
            "shape": {str(i): size for i, size in enumerate(array.shape)},
            "chunks": {str(i): _pack(chunk) for i, chunk in enumerate(chunks)},
        }
    payload = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
    return msgpack.ExtType(_NDARRAY, payload)


def _read_extension(code: int, payload: bytes) -> Tensor:
    """Decode one array; the payload's own sizes are checked against its length before anything is made of them."""
    if code != _NDARRAY:
        raise CheckpointError(f"it holds msgpack extension type {code}; only arrays (type {_NDARRAY}) are expected.")
    value = msgpack.unpackb(payload, raw=False, max_array_len=MAX_DIMENSIONS, max_map_len=0, max_ext_len=0)
    if not (isinstance(value, list) and len(value) == 3):
        raise CheckpointError("it holds an array that is not (shape, type, bytes).")
    shape, dtype, data = value
    if not (isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)):
        raise CheckpointError(f"it holds an array of shape {shape!r}.")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"it holds an array of type {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    itemsize = np.dtype(_DTYPES[dtype]).itemsize
    # Python integers do not overflow, however large the claimed shape is.
    size = itemsize
    for length in shape:
        size *= length
    if not isinstance(data, bytes) or len(data) != size:
        length = len(data) if isinstance(data, bytes) else 0
        raise CheckpointError(f"it holds an array of shape {shape} and type {dtype} with {length} bytes.")
    array = np.frombuffer(data, dtype=np.dtype(_DTYPES[dtype]).newbyteorder("<")).reshape(shape)
    if dtype == "bfloat16":
        return torch.from_numpy(array.copy()).view(torch.bfloat16).float()
    return torch.from_numpy(array.astype(np.float32))


def _flatten(node: Any, name: str, tensors: dict[str, Tensor], depth: int) -> None:
    if isinstance(node, Tensor):
        tensors[name] = node
        return
    if not isinstance(node, dict) or not name and not node:
        raise CheckpointError(f"'{name}' is a {type(node).__name__}; expected named arrays.")
    if depth > MAX_DEPTH:
        raise CheckpointError(f"'{name}' lies deeper than {MAX_DEPTH} levels.")
    if _CHUNKED in node:
        tensors[name] = _join_chunks(node, name)
        return
    for key, child in node.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise CheckpointError(f"'{name}' has an entry named {key!r}.")
        _flatten(child, f"{name}/{key}" if name else key, tensors, depth + 1)


def _join_chunks(node: dict[str, Any], name: str) -> Tensor:
    shape, chunks = node.get("shape"), node.get("chunks")
    if not (isinstance(shape, dict) and isinstance(chunks, dict) and shape and chunks):
        raise CheckpointError(f"'{name}' is a divided array without shape or parts.")
    numbers = [[str(i) for i in range(len(part))] for part in (shape, chunks)]
    if [list(shape), list(chunks)] != numbers and any(
        set(part) != set(number) for part, number in zip((shape, chunks), numbers, strict=True)
    ):
        raise CheckpointError(f"'{name}' is a divided array whose parts are not numbered from 0.")
    sizes = [shape[i] for i in numbers[0]]
    parts = [chunks[i] for i in numbers[1]]
    flat = all(isinstance(part, Tensor) and part.ndim == 1 for part in parts)
    if not flat or any(type(size) is not int or size < 0 for size in sizes):
        raise CheckpointError(f"'{name}' is a divided array with parts that are no arrays.")
    joined = torch.cat(parts)
    expected = 1
    for size in sizes:
        expected *= size
    if joined.numel() != expected:
        raise CheckpointError(f"'{name}' is a divided array of shape {sizes} with {joined.numel()} numbers.")
    return joined.reshape(sizes)
