"""Windows in which nothing moves are found by their normalised observations."""

import pytest
import torch
from torch import Tensor

from drift_policy.data.idle import moving_windows
from drift_policy.data.normalizer import Normalizer
from drift_policy.data.window_batches import WindowBatches
from drift_policy.errors import ConfigurationError


def windows(*positions: list[float], images: bool = False) -> WindowBatches:
    """Windows of 2 observed and 5 steps in all, each a list of positions between 0 and 100."""
    steps = torch.tensor(positions)
    values: Tensor = steps.reshape(-1, 1)
    still = torch.zeros_like(values)
    rows = torch.arange(steps.numel()).reshape(steps.shape)
    observed = {"camera": torch.zeros(len(values), 8, 8, 3, dtype=torch.uint8)} if images else {"a": still, "b": values}
    return WindowBatches(observed, values, rows, n_obs_steps=2)


def normalizer() -> Normalizer:
    ends = torch.tensor([[0.0], [100.0]])
    return Normalizer.fit({"a": ends, "b": ends, "action": ends})


def test_a_window_moves_by_its_executed_steps_alone() -> None:
    given = windows(
        [0, 0, 0, 0, 0],  # still
        [0, 50, 50, 50, 50],  # moved before the newest observation
        [0, 0, 0, 0, 50],  # moves after the executed steps
        [0, 0, 0, 5, 0],  # there and back while it executes
        [0, 0, 4, 0, 0],  # less than the threshold
    )
    assert moving_windows(given, normalizer(), n_action_steps=2, threshold=0.1).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_wrong_input_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="only cameras"):
        moving_windows(windows([0, 0, 0, 0, 0], images=True), normalizer(), 2, 0.1)
    with pytest.raises(ConfigurationError, match="smaller"):
        moving_windows(windows([0, 0, 0, 0, 0]), normalizer(), 2, 0.1)
