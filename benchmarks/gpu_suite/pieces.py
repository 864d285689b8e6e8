"""Weights as safetensors files of limited size: each can travel alone, and a checksum tells whether it arrived."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from drift_policy.errors import CheckpointError, ConfigurationError

PIECE_BYTES = 15_000_000  # of tensors; the header of a file comes on top, and a file must stay below 16 MB


@dataclass(frozen=True)
class Piece:
    """A written file."""

    file: str  # name, in the folder of the index
    bytes: int
    sha256: str


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the tensors' numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def as_stored(state: Mapping[str, Tensor], parameters: set[str]) -> dict[str, Tensor]:
    """Copy a state dict as it travels: parameters in float16, everything else (the normaliser) as it is, on the CPU."""
    return {
        name: tensor.detach().to("cpu", torch.float16 if name in parameters else tensor.dtype, copy=True)
        for name, tensor in state.items()
    }


class PieceWriter:
    """Packs tensors into files `<name>.<number>.safetensors`, in the order in which they are added.

    Args:
        folder: made if absent.
        name: of the files.
        limit: bytes of tensors in a file.
    """

    def __init__(self, folder: Path, name: str, limit: int = PIECE_BYTES) -> None:
        self._folder, self._name, self._limit = folder, name, limit
        self._full: list[Piece] = []
        self._open: dict[str, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, prefix: str, tensors: Mapping[str, Tensor]) -> list[Piece]:
        """Write tensors as `<prefix>/<their name>` and return all pieces so far; the newest may still grow.

        Raises:
            ConfigurationError: a tensor is larger than a piece.
        """
        for name, tensor in tensors.items():
            size = num_bytes({name: tensor})
            if size > self._limit:
                raise ConfigurationError(f"{name} has {size} bytes, but a piece holds {self._limit}: train less wide.")
            if num_bytes(self._open) + size > self._limit:
                self._full.append(self._write())
                self._open = {}
            self._open[f"{prefix}/{name}"] = tensor
        return [*self._full, self._write()]

    def _write(self) -> Piece:
        file = f"{self._name}.{len(self._full)}.safetensors"
        content = save(self._open)
        (self._folder / file).write_bytes(content)
        return Piece(file, len(content), hashlib.sha256(content).hexdigest())


def read_pieces(folder: Path, pieces: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Join the tensors of all pieces.

    Args:
        folder: where they lie.
        pieces: what `PieceWriter.add` returned, as mappings.

    Raises:
        CheckpointError: a piece is missing, or is not the one that was written.
    """
    joined: dict[str, Tensor] = {}
    for entry in pieces:
        path = folder / Path(str(entry["file"])).name  # a file of this folder, whatever the index says
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: bring back all pieces of a training.")
        content = path.read_bytes()
        found = Piece(path.name, len(content), hashlib.sha256(content).hexdigest())
        if asdict(found) != dict(entry):
            raise CheckpointError(
                f"{path} has {found.bytes} bytes, sha256 {found.sha256}, but should be {dict(entry)}."
            )
        try:
            joined |= load(content)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return joined
