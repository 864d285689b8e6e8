"""Leaves out windows in which a demonstrator hesitates: a policy that imitates pauses waits for ever.

A policy does not see how long it has been waiting. A demonstrated "a moment more, then on" is imitated as "a moment
more" at every decision, because the next decision comes before "then on" is reached.
"""

import torch
from torch import Tensor

from drift_policy.data.normalizer import Normalizer
from drift_policy.data.window_batches import WindowBatches, is_image
from drift_policy.errors import ConfigurationError


def moving_windows(windows: WindowBatches, normalizer: Normalizer, n_action_steps: int, threshold: float) -> Tensor:
    """Return which windows move while their actions are executed, [W] boolean.

    Args:
        windows: with observed numbers; images say nothing here.
        normalizer: maps the numbers to [-1, 1].
        n_action_steps: executed steps, Ta.
        threshold: a window moves if one of its normalised numbers covers at least this range between the newest
            observation and the end of the executed actions.

    Raises:
        ConfigurationError: there are only images, or no window moves.
    """
    first = windows.n_obs_steps - 1
    steps = windows.rows[:, first : first + n_action_steps + 1]
    moves = torch.zeros(len(windows), dtype=torch.bool, device=windows.device)
    states = {key: tensor for key, tensor in windows.observations.items() if not is_image(tensor)}
    if not states:
        raise ConfigurationError("trainer.idle_threshold needs observed numbers, but this task has only cameras.")
    for key, tensor in states.items():
        values = normalizer.normalize(key, tensor)
        low = high = values[steps[:, 0]]
        for step in steps.unbind(dim=1)[1:]:  # one after the other: all windows at once would need much memory
            low, high = torch.minimum(low, values[step]), torch.maximum(high, values[step])
        moves |= (high - low).amax(dim=1) >= threshold
    if not moves.any():
        raise ConfigurationError(f"trainer.idle_threshold={threshold} leaves no window: choose a smaller one.")
    return moves
