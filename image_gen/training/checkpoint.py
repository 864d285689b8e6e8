"""The last checkpoint of an image training, with everything that a bit-exact resume needs.

<run>/checkpoints/last/: config.json and model.safetensors (the averaged network, for `image_gen.load_generator` or
`load_mae`), training.safetensors (trained weights, AdamW's moments, queues), training.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from drift_policy.errors import CheckpointError
from drift_policy.training.checkpoint import full_disk_is_user_error
from image_gen.artifacts.location import MODEL_FILE, TRAINED_FOLDER
from image_gen.models import MAE, DiT

_TENSORS_FILE = "training.safetensors"
_STATE_FILE = "training.json"
# As `training_tensors` names them.
_WEIGHTS, _MOMENTS = "policy.", "optimizer."
_MOMENT_NAMES = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainingState:
    """The part of a training's state that is not tensors."""

    step: int = 0
    ema_updates: int = 0
    done_events: list[str] = field(default_factory=list)  # what has been done at this very step
    training_s: float = 0.0  # seconds spent on updates


class CheckpointStore:
    """Reads and writes the last checkpoint of one run.

    Args:
        run_dir: the folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.last = run_dir / TRAINED_FOLDER

    def has_last(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        old = self.last.with_name("last.old")
        if old.exists() and not self.last.exists():  # a crash between both renames
            old.rename(self.last)
        return (self.last / _STATE_FILE).is_file()

    def read_state(self) -> TrainingState:
        """Return how far the training came.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        try:
            return TrainingState(**json.loads((self.last / _STATE_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise self._cannot_resume(error) from error

    def save_last(
        self, network: DiT | MAE, tensors: Mapping[str, Tensor], state: TrainingState, metadata: dict[str, Any]
    ) -> None:
        """Replace the last checkpoint; the previous one stays valid until the new one is complete.

        Args:
            network: the averaged one.
            tensors: from `training_tensors` and the objective.
            state: everything else.
            metadata: kept beside the network.

        Raises:
            UserError: the disk is full.
        """
        temporary, old = self.last.with_name("last.tmp"), self.last.with_name("last.old")
        with full_disk_is_user_error(self.last):
            shutil.rmtree(temporary, ignore_errors=True)
            network.save_pretrained(temporary, metadata)
            save_file(dict(tensors), temporary / _TENSORS_FILE)
            (temporary / _STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            shutil.rmtree(old, ignore_errors=True)
            if self.last.exists():
                self.last.rename(old)
            temporary.rename(self.last)
            shutil.rmtree(old, ignore_errors=True)

    def load_last(
        self, ema_network: nn.Module, network: nn.Module
    ) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]]:
        """Put the weights back as they were saved.

        Returns:
            The state; the moments, for `restore_moments` once there is an optimiser; and the objective's tensors.

        Raises:
            CheckpointError: the checkpoint is damaged or of another network.
        """
        state = self.read_state()
        try:
            tensors = load_file(self.last / _TENSORS_FILE)
            ema_network.load_state_dict(load_file(self.last / MODEL_FILE))
            network.load_state_dict(_take(_WEIGHTS, tensors))
            moments = _take(_MOMENTS, tensors)
            expected = {f"{name}.{moment}" for name, _ in network.named_parameters() for moment in _MOMENT_NAMES}
            if moments.keys() != expected:
                raise ValueError(f"the optimiser's moments of {len(moments.keys() ^ expected)} tensors do not fit")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise self._cannot_resume(error) from error
        return state, moments, tensors

    def _cannot_resume(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.last} cannot be resumed ({error}). Delete it to start again.")


def _take(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the tensors below a prefix and return them without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
