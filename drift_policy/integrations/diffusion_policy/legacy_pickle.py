"""A reader of pickles that runs nothing: containers, numbers and records of tensors, and placeholders for all else.

A pickle is a program that names functions and calls them. Here a name is never looked up: `find_class` answers with an
inert record, so nothing is imported and nothing of the file is called. This is the one module of the library that
imports pickle; tests/test_architecture.py checks how.
"""

import io
import pickle
from typing import Any, NamedTuple

import torch

from drift_policy.errors import CheckpointError

# How PyTorch calls the types of its storages.
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StorageRecord(NamedTuple):
    """Where the numbers of a tensor lie in the file."""

    dtype: torch.dtype
    key: str  # name of the record in the archive
    numel: int


class TensorRecord(NamedTuple):
    """A tensor that has not been read yet."""

    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder(type):
    """Stands for a class, function or object of the file; remembers what the file would have given to it.

    Placeholders are types, made of nothing, because a pickle may ask for an instance of any of them. Calling one, or
    asking it for an instance, gives another.

    Attributes:
        origin: "module.name" of the class or function that was asked for in the first place.
        args: positional arguments of its call.
        state: what its attributes would have been set from.
        items: what would have been put into it as a container: (key, value) or values.
    """

    origin: str
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(mcs, origin: str, args: tuple[Any, ...] = ()) -> "Placeholder":
        """Make an empty type that remembers its origin and arguments."""
        self = super().__new__(mcs, "Placeholder", (), {"__new__": _instance})
        self.origin, self.args, self.state, self.items = origin, args, None, []
        return self

    def __init__(cls, *_: Any) -> None:
        """Take the arguments: `__new__` has kept them."""

    def __call__(cls, *args: Any, **_: Any) -> "Placeholder":
        """Stand for the result of calling what this stands for."""
        return Placeholder(cls.origin, args)

    def __setstate__(cls, state: Any) -> None:
        cls.state = state

    def __setitem__(cls, key: Any, value: Any) -> None:
        cls.items.append((key, value))

    def append(cls, value: Any) -> None:
        """Take an item of a list."""
        cls.items.append(value)

    def extend(cls, values: Any) -> None:
        """Take the items of a list."""
        cls.items.extend(values)

    def add(cls, value: Any) -> None:
        """Take an item of a set."""
        cls.items.append(value)


def _instance(cls: Placeholder, *args: Any, **_: Any) -> Placeholder:
    """Stand for an instance that the file asks for without calling its class."""
    return Placeholder(cls.origin, args)


class Entries(dict[Any, Any]):
    """An ordered dictionary of the file; without attributes, so that the file cannot replace its methods."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        """Take no attributes: PyTorch keeps version numbers of modules there."""


class _TensorBuilders:
    """PyTorch's two functions that make tensors, as functions that make records.

    Used as bound methods of an object made for one file: their attributes cannot be set, unlike a function's.
    """

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRecord:
        numbers = (offset, *size, *stride)
        if not isinstance(storage, StorageRecord) or len(size) != len(stride):
            raise pickle.UnpicklingError("a tensor without storage or of contradicting shape")
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise pickle.UnpicklingError(f"a tensor of impossible offset, size or stride {numbers}")
        return TensorRecord(storage, offset, tuple(size), tuple(stride))

    def parameter(self, data: Any, *_: Any) -> Any:
        return data


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler whose `find_class` is an allow-list that imports nothing."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        builders = _TensorBuilders()
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): Entries,
            ("torch._utils", "_rebuild_tensor_v2"): builders.tensor,
            ("torch._utils", "_rebuild_parameter"): builders.parameter,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return what stands for a name; nothing is looked up."""
        allowed = self._allowed.get((module_name, global_name))
        if allowed is not None:
            return allowed
        return Placeholder(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> StorageRecord:
        """Return the record of a storage: ("storage", type, key, device, numel)."""
        fits = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        if not fits or not isinstance(pid[1], torch.dtype) or not isinstance(pid[4], int):
            raise pickle.UnpicklingError(f"a reference to something that is no storage: {str(pid)[:80]}")
        return StorageRecord(pid[1], str(pid[2]), pid[4])


def read_inert(content: bytes, where: str) -> Any:
    """Return what a pickle describes, with `Placeholder` and `TensorRecord` in place of objects.

    Args:
        content: the pickle.
        where: its name, for the error.

    Raises:
        CheckpointError: it is damaged, or holds what these records cannot stand for.
    """
    try:
        return RestrictedUnpickler(content).load()
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise CheckpointError(
            f"{where} cannot be read without running code of it ({type(error).__name__}: {error}): it is damaged, or "
            "no checkpoint of Diffusion Policy."
        ) from error
