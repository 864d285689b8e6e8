"""Checkpoints of Diffusion Policy's workspaces (`.ckpt`), read without running anything in them.

They are PyTorch zip archives whose pickle, written with dill, holds {"cfg", "state_dicts": {"model", "ema_model",
"optimizer"}, "pickles"}. The tensors are read from the archive's records; the configuration from the plain values that
its nodes would have been given.
"""

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drift_policy.errors import CheckpointError
from drift_policy.integrations.diffusion_policy.legacy_pickle import Placeholder, TensorRecord, read_inert

MODELS = ("model", "ema_model")
_MAX_PICKLE_BYTES = 64 * 2**20  # structure only; the numbers lie elsewhere
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MAX_DEPTH = 32  # of configurations, and of references to references


@dataclass(frozen=True)
class LegacyCheckpoint:
    """What a checkpoint of Diffusion Policy says.

    Attributes:
        state_dicts: "model" and, if there is one, "ema_model" -> tensors by name.
        config: the workspace's configuration as plain values; references such as ${horizon} are resolved, expressions
            such as ${eval:...} are left as text.
    """

    state_dicts: dict[str, dict[str, Tensor]]
    config: dict[str, Any]


def read_legacy_checkpoint(path: str | Path) -> LegacyCheckpoint:
    """Read the weights and the configuration of a Diffusion Policy checkpoint; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds NaN.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            prefix = _prefix(archive, path)
            if archive.getinfo(f"{prefix}data.pkl").file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path}: its pickle has more than {_MAX_PICKLE_BYTES} bytes.")
            payload = read_inert(archive.read(f"{prefix}data.pkl"), str(path))
            stored = payload.get("state_dicts") if isinstance(payload, dict) else None
            if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict):
                raise CheckpointError(f"{path} is no checkpoint of Diffusion Policy: it has no state_dicts/model.")
            state_dicts = {
                name: _read_tensors(archive, prefix, stored[name], f"{path}: state_dicts/{name}")
                for name in MODELS
                if isinstance(stored.get(name), dict)
            }
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged, or no zip archive as PyTorch 1.6 and later writes it ({error})."
        ) from error
    config = _plain(payload.get("cfg"), 0)
    return LegacyCheckpoint(state_dicts, _resolved(config) if isinstance(config, dict) else {})


def _prefix(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the folder of the archive that holds the pickle."""
    found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise CheckpointError(f"{path} holds {len(found)} files data.pkl; a PyTorch archive has one.")
    prefix = found[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported.")
    return prefix


def _read_tensors(archive: zipfile.ZipFile, prefix: str, stored: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    storages: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, record in stored.items():
        if not isinstance(name, str) or not isinstance(record, TensorRecord):
            raise CheckpointError(f"{where}: {name!r} is no tensor.")
        storage = record.storage
        if storage.key not in storages:
            content = bytearray(archive.read(f"{prefix}data/{storage.key}"))
            if len(content) != storage.numel * storage.dtype.itemsize:
                raise CheckpointError(f"{where}: the numbers of {name} are incomplete.")
            storages[storage.key] = (
                torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
            )
        tensors[name] = _view(storages[storage.key], record, f"{where}: {name}")
    return tensors


def _view(numbers: Tensor, record: TensorRecord, where: str) -> Tensor:
    """Return the tensor of a record, as a copy."""
    last = record.offset + sum((size - 1) * stride for size, stride in zip(record.size, record.stride, strict=True))
    count = math.prod(record.size)
    if numbers.dtype != record.storage.dtype or (count and last >= numbers.numel()) or count > numbers.numel():
        raise CheckpointError(f"{where} does not lie within its numbers.")
    tensor = numbers.as_strided(record.size, record.stride, record.offset if count else 0).clone()
    if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
        raise CheckpointError(f"{where} holds NaN; the training that wrote it diverged.")
    return tensor


def _plain(value: Any, depth: int) -> Any:
    """Return the plain value that OmegaConf's nodes would have held; None for what is none."""
    if depth > _MAX_DEPTH:
        raise CheckpointError("The configuration in the checkpoint is nested too deeply.")
    if isinstance(value, Placeholder):
        state = value.state if isinstance(value.state, dict) else {}
        # A container keeps its nodes in _content, a leaf its value in _val.
        return _plain(state.get("_content", state.get("_val")), depth + 1)
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return value if isinstance(value, (str, int, float, bool)) else None


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """Replace references ${a.b}; expressions are left as they are, because working them out would run them."""

    def resolve(value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {key: resolve(item, depth + 1) for key, item in value.items()} if depth < _MAX_DEPTH else {}
        if isinstance(value, list):
            return [resolve(item, depth + 1) for item in value] if depth < _MAX_DEPTH else []
        match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if match is None or depth >= _MAX_DEPTH:
            return value
        found: Any = config
        for part in match.group(1).split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return resolve(found, depth + 1)

    return {key: resolve(value, 0) for key, value in config.items()}
