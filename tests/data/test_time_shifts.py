"""Shifts in time stay within the episode, are weighted as computed by hand, and bring the chunks that begin there."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.time_shifts import shifted_windows


def test_windows_and_weights_of_two_short_episodes() -> None:
    found = shifted_windows(np.array([0, 0, 0, 2, 2]), shifts=2)
    assert found.windows.tolist() == [
        [0, 0, 1, 0, 2],
        [1, 0, 2, 0, 2],
        [2, 1, 2, 0, 2],
        [3, 3, 4, 3, 4],
        [4, 3, 4, 3, 4],
    ]
    # exp(-1/2) = 0.60653 at one step, exp(-2) = 0.13534 at two; with 1 and both signs they add up to 2.48374.
    expected = torch.tensor([0.40262, 0.24420, 0.24420, 0.05449, 0.05449]).expand(5, 5)
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), shifts=st.integers(1, 20))
def test_every_shift_is_the_nearest_window_of_the_own_episode(lengths: list[int], shifts: int) -> None:
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    windows, weights = shifted_windows(episodes, shifts)
    assert windows.shape == weights.shape == (len(episodes), 2 * shifts + 1)
    for window, row in enumerate(windows.tolist()):
        own = np.flatnonzero(episodes == episodes[window])
        assert row[0] == window
        for shift in range(1, shifts + 1):
            assert row[2 * shift - 1] == max(window - shift, own[0])
            assert row[2 * shift] == min(window + shift, own[-1])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(episodes)))
    by_shift = weights[0, ::2]
    assert bool((by_shift.diff() < 0).all()), "a larger shift weighs less"
    torch.testing.assert_close(weights[:, 1::2], weights[:, 2::2])
    assert float(by_shift[-1] / by_shift[0]) == pytest.approx(np.exp(-2), rel=1e-5)


def test_positives_of_a_batch_begin_earlier_and_later_in_the_episode() -> None:
    step = np.arange(30, dtype=np.float32)[:, None]
    buffer = ReplayBuffer({"obs": step, "action": 100 + step}, np.array([14, 30]))
    columns = {"obs": [Column("obs")]}, [Column("action")]
    windows = WindowDataset(buffer, *columns, horizon=4, n_obs_steps=2, n_action_steps=2)
    windows.neighbours = shifted_windows(windows.episodes, shifts=1)
    middle = int(torch.nonzero(windows.rows[:, 0] == 20)[0])
    last_of_first = int(torch.nonzero(windows.rows[:, 0] < 14)[-1])
    batch = windows.batch(np.array([middle, last_of_first]))
    begins = (batch["positives"][:, :, 0, 0] - 100).tolist()
    assert begins[0] == [20, 19, 21]
    own = float(batch["action"][1, 0, 0]) - 100
    assert begins[1] == [own, own - 1, own], "no chunk of the next episode"
    assert batch["positives"].max() <= 129 and float(batch["positives"][1].max()) <= 113
