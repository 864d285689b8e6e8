"""Checkpoints of a run: the last one with everything a bit-exact resume needs, and the best ones.

The best are those with the highest score of rollouts or, without an environment, the lowest held-out action error.

Folders below <run>/checkpoints/:
    last/             config.json, model.safetensors (EMA weights), training.safetensors, training.json
    step_<number>/    config.json, model.safetensors of the best
    index.json        which folder is the last and which the best
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from drift_policy.errors import CheckpointError, UserError
from drift_policy.policy import Policy
from drift_policy.serialization import INDEX_FILE, save_policy

LAST = "last"
_TENSORS_FILE = "training.safetensors"
_STATE_FILE = "training.json"
_WEIGHTS, _MOMENTS = "policy.", "optimizer."
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq", "step")


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
        lowest_is_best: whether scores are errors.
    """

    def __init__(self, run_dir: Path, keep_best: int, *, lowest_is_best: bool = False) -> None:
        self._folder = run_dir / "checkpoints"
        self._index = run_dir / INDEX_FILE
        self._keep_best = keep_best
        self._lowest_is_best = lowest_is_best

    def has_last(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        self._finish_interrupted_swap()
        return (self._folder / LAST / _STATE_FILE).is_file()

    def save_last(self, ema_policy: Policy, tensors: Mapping[str, Tensor], state: TrainingState) -> None:
        """Replace the last checkpoint; the previous one stays valid until the new one is complete.

        Args:
            ema_policy: the averaged policy.
            tensors: from `training_tensors`.
            state: everything else.

        Raises:
            UserError: the disk is full.
        """
        temporary, last, old = (self._folder / name for name in ("last.tmp", LAST, "last.old"))
        with full_disk_is_user_error(last):
            shutil.rmtree(temporary, ignore_errors=True)
            save_policy(ema_policy, temporary)
            save_file(dict(tensors), temporary / _TENSORS_FILE)
            (temporary / _STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            shutil.rmtree(old, ignore_errors=True)
            if last.exists():
                last.rename(old)
            temporary.rename(last)
            shutil.rmtree(old, ignore_errors=True)
            self._write_index(state.best)

    def load_last(self, ema_policy: Policy, policy: Policy) -> tuple[TrainingState, dict[str, Tensor]]:
        """Put the weights back as they were saved.

        Returns:
            The state, and the moments for `restore_moments` once there is an optimiser.

        Raises:
            CheckpointError: the checkpoint is damaged or of another policy.
        """
        folder = self._folder / LAST
        try:
            state = _read_state(folder / _STATE_FILE)
            tensors = load_file(folder / _TENSORS_FILE)
            ema_policy.load_state_dict(load_file(folder / "model.safetensors"))
            policy.load_state_dict(_below(_WEIGHTS, tensors))
            moments = _below(_MOMENTS, tensors)
            expected = {f"{name}.{moment}" for name, _ in policy.named_parameters() for moment in _MOMENT_NAMES}
            if moments.keys() != expected:
                raise ValueError(f"the optimiser's moments of {len(moments.keys() ^ expected)} tensors do not fit")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} cannot be resumed ({error}). Delete it to start again, or evaluate one of the other "
                f"checkpoints in {self._folder}."
            ) from error
        return state, moments

    def save_scored(self, ema_policy: Policy, state: TrainingState, score: float) -> None:
        """Add a checkpoint to the top-k table if its score deserves it, and delete the one that falls out.

        Raises:
            UserError: the disk is full.
        """
        row = ScoredCheckpoint(f"step_{state.step:08d}", state.step, score)
        table = sorted([*state.best, row], key=lambda entry: entry.score, reverse=not self._lowest_is_best)
        kept, dropped = table[: self._keep_best], table[self._keep_best :]
        with full_disk_is_user_error(self._folder / LAST):
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


def training_tensors(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the trained weights and AdamW's moments on the CPU, whole and by name.

    The names make them independent of how many processes shared them. With several processes all must call this; the
    first one receives the tensors, the others may receive nothing.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(policy, options=options))
    states = get_optimizer_state_dict(policy, optimizer, options=options).get("state", {})
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in weights.items()}
    for name, moments in cast(dict[str, dict[str, Tensor]], states).items():
        tensors |= {f"{_MOMENTS}{name}.{moment}": value for moment, value in moments.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def restore_moments(policy: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Give an optimiser the moments that `load_last` returned, split as the policy is now."""
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in moments.items():
        name, _, moment = full_name.rpartition(".")
        states.setdefault(name, {})[moment] = tensor
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    names = [name for name, _ in policy.named_parameters()]
    set_optimizer_state_dict(
        policy,
        optimizer,
        {"state": states, "param_groups": [{**group, "params": names}]},  # type: ignore[dict-item]  # its own format
        options=StateDictOptions(full_state_dict=True),
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
