"""Checkpoints of a run: the last one with everything a bit-exact resume needs, and the best ones by rollout score.

Folders below <run>/checkpoints/:
    last/             config.json, model.safetensors (EMA weights), training.safetensors, training.json
    step_<number>/    config.json, model.safetensors of the best rollouts
    index.json        which folder is the last and which the best
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from drift_policy.errors import CheckpointError, UserError
from drift_policy.policy import Policy
from drift_policy.serialization import INDEX_FILE, save_policy

LAST = "last"
_TENSORS_FILE = "training.safetensors"
_STATE_FILE = "training.json"
_RNG_CPU, _RNG_CUDA = "rng.cpu", "rng.cuda"


@dataclass
class TrainingState:
    """The part of a run's state that is not tensors."""

    step: int = 0
    ema_updates: int = 0
    done_events: list[str] = field(default_factory=list)  # what has been done at this very step
    training_s: float = 0.0  # seconds spent on updates
    best: list["ScoredCheckpoint"] = field(default_factory=list)  # best first


@dataclass
class ScoredCheckpoint:
    """A row of the top-k table."""

    folder: str
    step: int
    score: float


class CheckpointStore:
    """Reads and writes the checkpoints of one run.

    Args:
        run_dir: the folder of the run.
        keep_best: how many scored checkpoints stay on disk.
    """

    def __init__(self, run_dir: Path, keep_best: int) -> None:
        self._folder = run_dir / "checkpoints"
        self._index = run_dir / INDEX_FILE
        self._keep_best = keep_best

    def has_last(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        self._finish_interrupted_swap()
        return (self._folder / LAST / _STATE_FILE).is_file()

    def save_last(
        self, ema_policy: Policy, policy: Policy, optimizer: torch.optim.Optimizer, state: TrainingState
    ) -> None:
        """Replace the last checkpoint; the previous one stays valid until the new one is complete.

        Raises:
            UserError: the disk is full.
        """
        temporary, last, old = (self._folder / name for name in ("last.tmp", LAST, "last.old"))
        with _full_disk_is_user_error(last):
            shutil.rmtree(temporary, ignore_errors=True)
            save_policy(ema_policy, temporary)
            save_file(_training_tensors(policy, optimizer), temporary / _TENSORS_FILE)
            (temporary / _STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            shutil.rmtree(old, ignore_errors=True)
            if last.exists():
                last.rename(old)
            temporary.rename(last)
            shutil.rmtree(old, ignore_errors=True)
            self._write_index(state.best)

    def load_last(self, ema_policy: Policy, policy: Policy, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Put everything back as it was saved, random generators included.

        Raises:
            CheckpointError: the checkpoint is damaged or of another policy.
        """
        folder = self._folder / LAST
        try:
            state = _read_state(folder / _STATE_FILE)
            ema_policy.load_state_dict(load_file(folder / "model.safetensors"))
            _restore_tensors(load_file(folder / _TENSORS_FILE), policy, optimizer)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} cannot be resumed ({error}). Delete it to start again, or evaluate one of the other "
                f"checkpoints in {self._folder}."
            ) from error
        return state

    def save_scored(self, ema_policy: Policy, state: TrainingState, score: float) -> None:
        """Add a checkpoint to the top-k table if its score deserves it, and delete the one that falls out.

        Raises:
            UserError: the disk is full.
        """
        row = ScoredCheckpoint(f"step_{state.step:08d}", state.step, score)
        table = sorted([*state.best, row], key=lambda entry: entry.score, reverse=True)
        kept, dropped = table[: self._keep_best], table[self._keep_best :]
        with _full_disk_is_user_error(self._folder / LAST):
            if row in kept:
                save_policy(ema_policy, self._folder / row.folder)
            state.best = kept
            self._write_index(kept)
        for entry in dropped:
            shutil.rmtree(self._folder / entry.folder, ignore_errors=True)

    def _write_index(self, best: list[ScoredCheckpoint]) -> None:
        content = {
            "last": LAST,
            "best": best[0].folder if best else None,
            "scores": [asdict(entry) for entry in best],
        }
        self._index.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._index.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, self._index)

    def _finish_interrupted_swap(self) -> None:
        """A crash between both renames leaves only last.old: it is the valid one."""
        last, old = self._folder / LAST, self._folder / "last.old"
        if old.exists() and not last.exists():
            old.rename(last)


def _read_state(path: Path) -> TrainingState:
    content = json.loads(path.read_text())
    best = [ScoredCheckpoint(**row) for row in content.pop("best")]
    return TrainingState(**content, best=best)


def _training_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors[_RNG_CPU] = torch.get_rng_state()
    if policy.device.type == "cuda":
        tensors[_RNG_CUDA] = torch.cuda.get_rng_state(policy.device)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _restore_tensors(tensors: dict[str, Tensor], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    prefix = "policy."
    policy.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors[_RNG_CPU])
    if policy.device.type == "cuda" and _RNG_CUDA in tensors:
        torch.cuda.set_rng_state(tensors[_RNG_CUDA], policy.device)


@contextmanager
def _full_disk_is_user_error(last: Path) -> Iterator[None]:
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
