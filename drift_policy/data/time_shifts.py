"""The chunks that begin a little earlier or later in the own episode: further positives for an observation.

Demonstrators do not act to the step: what was done one step later is a plausible answer too. The chunks of an episode's
windows are the demonstrated ones shifted by whole steps, which says nothing of other ways to solve the task.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from drift_policy.data.window_batches import Neighbours


def shifted_windows(episodes: NDArray[np.int64], shifts: int) -> Neighbours:
    """Return the windows that start up to `shifts` steps before or after each window, in its episode.

    The weight of a shift of s steps is exp(-s^2 / (2 (shifts / 2)^2)), down to exp(-2) for the largest, divided by its
    sum over the shifts. A shift beyond the first or last window of the episode is that window.

    Args:
        episodes: number of the episode of each window, [W]; the windows of an episode follow each other, a step apart.
        shifts: the largest shift, at least 1.

    Returns:
        The 2 * shifts + 1 windows of each: itself, one step earlier, one later, two earlier, ...
    """
    offsets = np.array([0, *(sign * shift for shift in range(1, shifts + 1) for sign in (-1, 1))])
    first = np.searchsorted(episodes, episodes, side="left")[:, None]
    last = np.searchsorted(episodes, episodes, side="right")[:, None] - 1
    windows = (np.arange(len(episodes))[:, None] + offsets).clip(first, last)
    weights = np.exp(-2 * np.square(offsets / shifts))
    shares = torch.from_numpy(weights / weights.sum()).float()
    return Neighbours(torch.from_numpy(windows), shares.repeat(len(episodes), 1))
