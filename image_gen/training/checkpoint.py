"""The last checkpoint of an image training, with everything that a bit-exact resume needs.

<run>/checkpoints/last/: config.json and model.safetensors (the averaged network, for `image_gen.load_generator` or
`load_mae`), training.safetensors (trained weights, AdamW's moments, queues), training.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from drift_policy.errors import CheckpointError
from drift_policy.training.saved_state import (
    STATE_FILE,
    UNREADABLE,
    TrainingState,
    finish_replacing,
    replacing,
    restore_weights,
    write_state,
)
from image_gen.artifacts.location import TRAINED_FOLDER
from image_gen.models import MAE, DiT


class CheckpointStore:
    """Reads and writes the last checkpoint of one run.

    Args:
        run_dir: the folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.last = run_dir / TRAINED_FOLDER

    def has_last(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        finish_replacing(self.last)
        return (self.last / STATE_FILE).is_file()

    def read_state(self) -> TrainingState:
        """Return how far the training came.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        try:
            return TrainingState(**json.loads((self.last / STATE_FILE).read_text()))
        except UNREADABLE as error:
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
        with replacing(self.last) as folder:
            network.save_pretrained(folder, metadata)
            write_state(folder, state, tensors)

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
            moments, others = restore_weights(self.last, ema_network, network)
        except UNREADABLE as error:
            raise self._cannot_resume(error) from error
        return state, moments, others

    def _cannot_resume(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.last} cannot be resumed ({error}). Delete it to start again.")
