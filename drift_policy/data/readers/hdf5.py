"""Access to HDF5 files that may be damaged or malicious: every error names the place inside the file.

Nothing that a file holds is executed: h5py uses no pickle, and arrays of objects are refused. Links are refused too,
because they, like arrays with external storage, can make a file show what lies elsewhere on this machine.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.blocks import row_blocks
from drift_policy.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import h5py

GET_AGAIN = "Delete it, if it is a copy, then download or copy the file again."


def import_h5py() -> ModuleType:
    """Return the package h5py; ConfigurationError if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigurationError(
            "HDF5 files are read with the package h5py, which is not installed: pip install 'drift-policy[hdf5]'."
        ) from error
    return h5py


@contextmanager
def open_hdf5(path: Path) -> "Iterator[h5py.File]":
    """Open a file for reading.

    Raises:
        ConfigurationError: h5py is not installed.
        DataError: there is no such file, or it is no complete HDF5 file.
    """
    h5py = import_h5py()
    if not path.is_file():
        raise DataError(f"{path} is not a file: expected an HDF5 file with demonstrations.")
    with damage_reported(path, "its header"):
        # Every chunk is decoded once, so a cache of decoded chunks, one for each open array, would only fill memory.
        file = h5py.File(path, mode="r", rdcc_nbytes=0)
    with file:
        yield file


@contextmanager
def damage_reported(path: Path, what: str) -> Iterator[None]:
    """Turn whatever h5py raises on damaged bytes into a DataError that names `what` in the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, ValueError or TypeError, as it happens
        raise DataError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {error}). The file is damaged, an incomplete copy "
            f"or not HDF5. {GET_AGAIN}"
        ) from error


def place(parent: "h5py.Group", name: str) -> str:
    """Return the path of a member inside the file, such as "data/demo_0/obs"."""
    return f"{parent.name}/{name}".lstrip("/")


def members(group: "h5py.Group", path: Path) -> list[str]:
    """Return the names of what lies directly in a group."""
    with damage_reported(path, f"the list of members of '{group.name}'"):
        return sorted(group)


def child_group(parent: "h5py.Group", name: str, path: Path, hint: str = "") -> "h5py.Group":
    """Return a group that lies directly in another.

    Args:
        parent: the other group.
        name: name of the wanted one.
        path: the file, for messages.
        hint: what to do if it is missing.

    Raises:
        DataError: it is missing, an array, a link or damaged.
    """
    child = _child(parent, name, path, hint)
    if not isinstance(child, import_h5py().Group):
        raise DataError(f"{path}: '{place(parent, name)}' must be a group, but is an array.")
    return child


def child_array(parent: "h5py.Group", name: str, path: Path, hint: str = "") -> "h5py.Dataset":
    """Return an array that lies directly in a group and is stored in this file completely; arguments as `child_group`.

    Raises:
        DataError: it is missing, a group, a link, stored outside this file, incomplete or damaged.
    """
    child = _child(parent, name, path, hint)
    where = place(parent, name)
    if not isinstance(child, import_h5py().Dataset) or child.shape is None:
        raise DataError(f"{path}: '{where}' must be an array, but is a group or empty.")
    with damage_reported(path, f"'{where}'"):
        if child.external is not None or child.is_virtual:
            raise DataError(f"{path}: '{where}' is stored in other files, which is refused as unsafe.")
        _check_stored_completely(child, path, where)
    return child


def check_numbers(array: "h5py.Dataset", path: Path) -> None:
    """Require numbers with one row a step, at least one step.

    Raises:
        DataError: another dtype or shape.
    """
    if array.dtype.kind not in "biuf" or array.ndim == 0 or array.size == 0:
        raise DataError(
            f"{path}: '{array.name.lstrip('/')}' must hold numbers with one row a step, but has dtype {array.dtype} "
            f"and shape {list(array.shape)}."
        )


def copy_rows(array: "h5py.Dataset", target: NDArray[Any], start: int, path: Path) -> None:
    """Copy the rows of an array [T, ...] to `target[start : start + T]`, a few megabytes at a time.

    Raises:
        DataError: damage, NaN or infinity.
    """
    where = array.name.lstrip("/")
    row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
    for block in row_blocks(len(array), row_bytes, array.chunks[0] if array.chunks else 1):
        rows = slice(start + block.start, start + block.stop)
        with damage_reported(path, f"'{where}'"):
            array.read_direct(target, block, rows)
        if target.dtype.kind == "f" and not np.isfinite(target[rows]).all():
            bad = ~np.isfinite(target[rows]).reshape(block.stop - block.start, -1).all(axis=1)
            raise DataError(
                f"{path}: '{where}' holds NaN or infinity, first at step {block.start + int(np.argmax(bad))}. Every "
                "value must be finite: repair or remove this demonstration."
            )


def read_names(array: "h5py.Dataset", path: Path) -> list[str]:
    """Read a list of strings [N].

    Raises:
        DataError: it is no list of strings, or damaged.
    """
    where = array.name.lstrip("/")
    with damage_reported(path, f"'{where}'"):
        if array.ndim != 1 or import_h5py().check_string_dtype(array.dtype) is None:
            raise DataError(f"{path}: '{where}' must be a list of names, but has dtype {array.dtype}.")
        return [name.decode() for name in array[:]]


def text_attribute(node: "h5py.Group", name: str, path: Path, max_bytes: int) -> str | None:
    """Return an attribute that is a text of at most `max_bytes`, or None if there is none of this name.

    Raises:
        DataError: it is no text, too long or damaged.
    """
    value = _attribute(node, name, path)
    if value is None:
        return None
    where = f"attribute '{name}' of '{node.name}'"
    with damage_reported(path, where):
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise DataError(f"{path}: {where} must be a text, but is {type(value).__name__}.")
        n_bytes = len(text.encode(errors="surrogateescape"))
    if n_bytes > max_bytes:
        raise DataError(f"{path}: {where} has {n_bytes:,} bytes; more than {max_bytes:,} are refused.")
    return text


def integer_attribute(node: "h5py.Group", name: str, path: Path) -> int | None:
    """Return an attribute that is a whole number, or None if there is none of this name.

    Raises:
        DataError: it is something else, or damaged.
    """
    value = _attribute(node, name, path)
    if value is not None and not isinstance(value, Integral):
        raise DataError(f"{path}: attribute '{name}' of '{node.name}' must be a whole number, but is {value!r:.50}.")
    return None if value is None else int(value)


def _child(parent: "h5py.Group", name: str, path: Path, hint: str) -> Any:
    h5py = import_h5py()
    where = place(parent, name)
    with damage_reported(path, f"'{where}'"):
        # A "/" or "." in a name would lead to another group.
        if "/" in name or name == "." or name not in parent:
            found = _shortened(members(parent, path))
            raise DataError(f"{path} has no '{where}': '{parent.name}' has {found}. {hint or 'Name one of these.'}")
        if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: '{where}' is a link to another place, which is refused as unsafe.")
        return parent[name]


def _check_stored_completely(array: "h5py.Dataset", path: Path, where: str) -> None:
    """HDF5 reads what was never written as zeros, so a recording that broke off would go unnoticed."""
    if array.size == 0:
        return
    if array.chunks is None:
        complete = array.id.get_storage_size() >= array.size * array.id.get_type().get_size()
    else:
        n_chunks = math.prod(math.ceil(n / unit) for n, unit in zip(array.shape, array.chunks, strict=True))
        complete = array.id.get_num_chunks() == n_chunks
    if not complete:
        raise DataError(
            f"{path}: '{where}' of shape {list(array.shape)} is not stored completely: writing it was interrupted. "
            f"{GET_AGAIN}"
        )


def _attribute(node: "h5py.Group", name: str, path: Path) -> Any:
    with damage_reported(path, f"attribute '{name}' of '{node.name}'"):
        # Not node.attrs.get(name), which takes an attribute that cannot be read for one that is not there.
        if name not in node.attrs:
            return None
        return node.attrs[name]


def _shortened(names: list[str]) -> str:
    return str(names) if len(names) <= 20 else f"{names[:10]} and {len(names) - 10} more"
