"""Random demonstrations with the columns of Push-T."""

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.replay_buffer import ReplayBuffer
from envs.pusht.geometry import block_keypoints


def random_pusht_columns(steps: int) -> dict[str, NDArray[np.float32]]:
    """Return states and targets all over the board; the keypoints are those of the block's pose."""
    rng = np.random.default_rng(0)
    action, state = rng.uniform(0, 512, (steps, 2)), rng.uniform(0, 512, (steps, 5))
    keypoint = np.stack([block_keypoints(pose[2:4], pose[4]) for pose in state])
    columns = {"action": action, "state": state, "keypoint": keypoint}
    return {name: column.astype(np.float32) for name, column in columns.items()}


def random_pusht(episodes: int) -> ReplayBuffer:
    """Return episodes of 30 steps."""
    return ReplayBuffer(random_pusht_columns(30 * episodes), np.arange(1, episodes + 1) * 30)
