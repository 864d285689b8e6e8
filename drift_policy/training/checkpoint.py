"""Checkpoints of a run: the last one with everything a bit-exact resume needs, and the best ones.

The best are those with the highest score of rollouts or, without an environment, the lowest error of the actions that
the policy would execute in held-out episodes.

Folders below <run>/checkpoints/:
    last/             config.json, model.safetensors (EMA weights), training.safetensors, training.json
    step_<number>/    config.json, model.safetensors of the best
    index.json        which folder is the last and which the best
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from drift_policy.errors import CheckpointError
from drift_policy.policy import Policy
from drift_policy.serialization import INDEX_FILE, load_policy, save_policy
from drift_policy.training.saved_state import (
    STATE_FILE,
    UNREADABLE,
    TrainingState,
    finish_replacing,
    full_disk_is_user_error,
    replacing,
    restore_weights,
    write_state,
)

LAST = "last"


@dataclass
class ScoredCheckpoint:
    """A row of the top-k table."""

    folder: str
    step: int
    score: float


@dataclass
class PolicyTrainingState(TrainingState):
    """With the checkpoints that are kept."""

    best: list[ScoredCheckpoint] = field(default_factory=list)  # best first
    scores: str = ""  # the metric that their scores are; empty in older checkpoints


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
        finish_replacing(self._folder / LAST)
        return (self._folder / LAST / STATE_FILE).is_file()

    def save_last(self, ema_policy: Policy, tensors: Mapping[str, Tensor], state: PolicyTrainingState) -> None:
        """Replace the last checkpoint; the previous one stays valid until the new one is complete.

        Args:
            ema_policy: the averaged policy.
            tensors: from `training_tensors`.
            state: everything else.

        Raises:
            UserError: the disk is full.
        """
        with replacing(self._folder / LAST) as folder:
            save_policy(ema_policy, folder)
            write_state(folder, state, tensors)
        with full_disk_is_user_error(self._folder / LAST):
            self._write_index(state.best)

    def load_last(self, ema_policy: Policy, policy: Policy) -> tuple[PolicyTrainingState, dict[str, Tensor]]:
        """Put the weights back as they were saved.

        Returns:
            The state, and the moments for `restore_moments` once there is an optimiser.

        Raises:
            CheckpointError: the checkpoint is damaged or of another policy.
        """
        folder = self._folder / LAST
        try:
            state = _read_state(folder / STATE_FILE)
            moments, _ = restore_weights(folder, ema_policy, policy)
            # One that fell out of the table after this checkpoint was saved is gone.
            state.best = [row for row in state.best if (self._folder / row.folder).is_dir()]
        except UNREADABLE as error:
            raise self._not_resumable(error) from error
        return state, moments

    def load_last_policy(self) -> Policy:
        """Return the averaged policy of the last checkpoint, on the CPU.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        try:
            return load_policy(self._folder / LAST)
        except CheckpointError as error:
            raise self._not_resumable(error) from error

    def save_scored(self, ema_policy: Policy, state: PolicyTrainingState, score: float) -> None:
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

    def _not_resumable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / LAST} cannot be resumed ({error}). Delete it to start again, or evaluate one of the "
            f"other checkpoints in {self._folder}."
        )

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


def _read_state(path: Path) -> PolicyTrainingState:
    content = json.loads(path.read_text())
    best = [ScoredCheckpoint(**row) for row in content.pop("best")]
    return PolicyTrainingState(**content, best=best)
