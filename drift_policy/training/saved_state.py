"""What every training saves and takes back for a bit-exact resume: weights, AdamW's moments, where it was.

A folder <run>/checkpoints/last/ with training.safetensors and training.json, beside the averaged network itself.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from drift_policy.errors import UserError
from drift_policy.tensor_files import save_file

STATE_FILE = "training.json"
# What reading a damaged folder may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
_TENSORS_FILE = "training.safetensors"
_AVERAGE_FILE = "model.safetensors"
_WEIGHTS, _MOMENTS = "policy.", "optimizer."
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainingState:
    """The part of a training's state that is not tensors."""

    step: int = 0
    ema_updates: int = 0
    done_events: list[str] = field(default_factory=list)  # what has been done at this very step
    training_s: float = 0.0  # seconds spent on updates


def write_state(folder: Path, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Write a training's state beside its averaged network."""
    save_file(tensors, folder / _TENSORS_FILE)
    (folder / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")


def restore_weights(
    folder: Path, average: nn.Module, network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put the averaged and the trained weights back as they were saved.

    Returns:
        The moments, for `restore_moments` once there is an optimiser; and the tensors that are neither.

    Raises:
        UNREADABLE: the folder is damaged or of another network.
    """
    tensors = load_file(folder / _TENSORS_FILE)
    average.load_state_dict(load_file(folder / _AVERAGE_FILE))
    network.load_state_dict(_take(_WEIGHTS, tensors))
    moments = _take(_MOMENTS, tensors)
    expected = {f"{name}.{moment}" for name, _ in network.named_parameters() for moment in _MOMENT_NAMES}
    if moments.keys() != expected:
        raise ValueError(f"the optimiser's moments of {len(moments.keys() ^ expected)} tensors do not fit")
    return moments, tensors


def training_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the trained weights and AdamW's moments on the CPU, whole and by name.

    The names make them independent of how many processes shared them. With several processes all must call this; the
    first one receives the tensors, the others may receive nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(network, options=options))
    states = get_optimizer_state_dict(network, optimizer, options=options).get("state", {})
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in weights.items()}
    for name, moments in cast(dict[str, dict[str, Tensor]], states).items():
        tensors |= {f"{_MOMENTS}{name}.{moment}": value for moment, value in moments.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def restore_moments(network: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `restore_weights` returned, split as the network is now."""
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, moment = full_name.rpartition(".")
        states.setdefault(name, {})[moment] = tensor
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    names = [name for name, _ in network.named_parameters()]
    set_optimizer_state_dict(
        network,
        optimizer,
        {"state": states, "param_groups": [{**group, "params": names}]},  # type: ignore[dict-item]  # its own format
        options=StateDictOptions(full_state_dict=True),
    )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give the path of a new folder that takes the place of `folder` in the end; until then that one stays valid.

    Raises:
        UserError: the disk is full.
    """
    temporary, old = folder.with_name(f"{folder.name}.tmp"), _old(folder)
    with full_disk_is_user_error(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Repair a crash between both renames: only the old folder is left, and it is the valid one."""
    if _old(folder).exists() and not folder.exists():
        _old(folder).rename(folder)


@contextmanager
def full_disk_is_user_error(last: Path) -> Iterator[None]:
    """Turn a full disk into a `UserError` that names the last checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        raise UserError(
            f"The disk is full: a checkpoint could not be written. If {last} exists, it is the previous one: "
            "free some space, then go on with the same command and resume=true."
        ) from error


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _take(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the tensors below a prefix and return them without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
