"""What an episode has achieved: which block was in which target, and when."""

from typing import Any

import numpy as np

from envs.block_push.starts import BLOCKS, TARGETS, Numbers

TOLERANCE = 0.05  # metres between the centres of a block and the target it is in


class Progress:
    """Counts the phases of an episode by the rule of Diffusion Policy's BlockPush benchmark.

    The first phase is completed for good when any block has been in any target. The second is completed when both
    blocks are in targets at the same time and the target closest to one is not that of the other.
    """

    def __init__(self, observation: Numbers) -> None:
        """Begin with the observation [16] of the start."""
        self.n_completed = 0
        self._step = -1
        self._entry_steps = np.full((2, 2), -1)
        self.update(observation)

    def update(self, observation: Numbers) -> None:
        """Take the next observation [16] into account."""
        self._step += 1
        distances = block_target_distances(observation)
        inside = distances < TOLERANCE
        self._entry_steps[inside & (self._entry_steps < 0)] = self._step
        if (self._entry_steps >= 0).any():
            self.n_completed = max(self.n_completed, 1)
        closest = distances.argmin(axis=1)
        if inside.any(axis=1).all() and closest[0] != closest[1]:
            self.n_completed = 2

    def info(self) -> dict[str, Any]:
        """Return what the environment says of it; see `BlockPushEnv`."""
        first_block, first_target = -1, -1
        if self.n_completed:
            order = np.where(self._entry_steps < 0, np.inf, self._entry_steps)
            first_block, first_target = (int(index) for index in np.unravel_index(order.argmin(), order.shape))
        return {
            "is_success": self.n_completed == 2,
            "n_completed": self.n_completed,
            "entry_steps": self._entry_steps.copy(),
            "first_block": first_block,
            "first_target": first_target,
        }


def block_target_distances(observation: Numbers) -> Numbers:
    """Return the distance in metres between the centres of each block (row) and each target (column), [2, 2]."""
    blocks = np.stack([observation[part][:2] for part in BLOCKS])
    targets = np.stack([observation[part][:2] for part in TARGETS])
    distances: Numbers = np.linalg.norm(blocks[:, None] - targets[None], axis=-1)
    return distances
