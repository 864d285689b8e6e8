"""Tensors in files that others may read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors
from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions of any other new file, or of the one that it replaces.

    safetensors alone leaves files that nobody but their owner can read, whatever the umask says.
    """
    path.touch()
    permissions = path.stat().st_mode
    safetensors.save_file(dict(tensors), path)
    path.chmod(permissions)
