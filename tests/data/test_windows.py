"""Windows and episode splits against plain-Python versions of Diffusion Policy's rules."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drift_policy.data.windows import Windows, create_indices, limit_episodes, split_validation
from drift_policy.errors import ConfigurationError, DataError


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[bool], int, int, int]:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    mask = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any))
    n_obs_steps, n_action_steps = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    horizon = n_obs_steps - 1 + n_action_steps + draw(st.integers(0, 8))
    return lengths, mask, horizon, n_obs_steps, n_action_steps


def naive_rows(lengths: list[int], mask: list[bool], horizon: int, before: int, after: int) -> list[list[int]]:
    """Row numbers of all windows, written as the definition: clamp every step of the window to its episode."""
    rows, begin = [], 0
    for length, used in zip(lengths, mask, strict=True):
        starts = list(range(-before, length - horizon + after + 1)) or [-before]
        if used:
            rows += [[begin + min(max(s + t, 0), length - 1) for t in range(horizon)] for s in starts]
        begin += length
    return rows


def make_windows(case: tuple[list[int], list[bool], int, int, int]) -> Windows:
    lengths, mask, horizon, n_obs_steps, n_action_steps = case
    return Windows.create(
        np.cumsum(lengths),
        horizon=horizon,
        n_obs_steps=n_obs_steps,
        n_action_steps=n_action_steps,
        episode_mask=np.array(mask),
    )


@settings(max_examples=200)
@given(cases())
@example(([1], [True], 16, 2, 8))
@example(([7, 8, 9], [True, True, True], 16, 2, 8))
@example(([3, 40], [False, True], 1, 1, 1))
def test_rows_equal_the_naive_version(case: tuple[list[int], list[bool], int, int, int]) -> None:
    lengths, mask, horizon, n_obs_steps, n_action_steps = case
    windows = make_windows(case)
    expected = naive_rows(lengths, mask, horizon, n_obs_steps - 1, n_action_steps - 1)
    assert windows.rows.tolist() == expected
    assert len(windows) == len(expected)


@settings(max_examples=200)
@given(cases())
def test_windows_cover_each_training_episode_and_no_other(case: tuple[list[int], list[bool], int, int, int]) -> None:
    lengths, mask, horizon, n_obs_steps, n_action_steps = case
    rows = make_windows(case).rows
    episode_of_row = np.repeat(np.arange(len(lengths)), lengths)
    episodes = episode_of_row[rows]
    assert (episodes == episodes[:, :1]).all()
    training_rows = np.flatnonzero(np.repeat(mask, lengths))
    assert np.array_equal(np.unique(rows), training_rows)
    if horizon == n_obs_steps - 1 + n_action_steps:
        # With nothing planned beyond the executed actions, every step is the first executed action of one window.
        assert np.array_equal(np.unique(rows[:, n_obs_steps - 1]), training_rows)
    if horizon <= n_obs_steps + 2 * n_action_steps - 2:
        executed = rows[:, n_obs_steps - 1 : n_obs_steps - 1 + n_action_steps]
        long_enough = np.array(lengths) >= horizon - (n_action_steps - 1) - (n_obs_steps - 1)
        assert set(np.flatnonzero(np.repeat(mask & long_enough, lengths))) <= set(executed.ravel())


@settings(max_examples=100)
@given(cases())
def test_indices_describe_the_unpadded_part(case: tuple[list[int], list[bool], int, int, int]) -> None:
    windows = make_windows(case)
    buffer_start, buffer_end, sample_start, sample_end = windows.indices.T
    assert (buffer_end - buffer_start == sample_end - sample_start).all()
    assert (sample_start >= 0).all() and (sample_end <= windows.horizon).all() and (sample_start < sample_end).all()


def test_known_indices_of_one_episode() -> None:
    # 5 steps, horizon 4, one step of padding before and two after: starts -1 to 3.
    indices = create_indices(np.array([5]), 4, 1, 2, np.array([True]))
    assert indices.tolist() == [[0, 3, 1, 4], [0, 4, 0, 4], [1, 5, 0, 4], [2, 5, 0, 3], [3, 5, 0, 2]]


@pytest.mark.parametrize(
    ("horizon", "n_obs_steps", "n_action_steps"), [(8, 0, 4), (8, 1, 0), (8, 2, 8), (0, 1, 1), (3, 4, 1)]
)
def test_step_counts_that_do_not_fit(horizon: int, n_obs_steps: int, n_action_steps: int) -> None:
    with pytest.raises(ConfigurationError, match=f"horizon={horizon}"):
        Windows.create(np.array([9]), horizon=horizon, n_obs_steps=n_obs_steps, n_action_steps=n_action_steps)


@pytest.mark.parametrize("mask", [np.array([False, False]), np.array([True]), np.array([0, 1])])
def test_masks_that_do_not_fit(mask: np.ndarray) -> None:
    with pytest.raises(DataError, match="mask"):
        Windows.create(np.array([5, 9]), horizon=4, n_obs_steps=1, n_action_steps=1, episode_mask=mask)


def test_validation_split_equals_diffusion_policy_at_seed_42() -> None:
    assert np.flatnonzero(split_validation(206)).tolist() == [18, 90, 134, 157]


@given(n_episodes=st.integers(1, 500), val_ratio=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_validation_split_leaves_episodes_on_both_sides(n_episodes: int, val_ratio: float, seed: int) -> None:
    mask = split_validation(n_episodes, val_ratio, seed)
    if val_ratio == 0 or n_episodes == 1:
        assert not mask.any()
    else:
        assert mask.sum() == min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
    assert np.array_equal(mask, split_validation(n_episodes, val_ratio, seed))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_wrong_validation_ratio(ratio: float) -> None:
    with pytest.raises(ConfigurationError, match="val_ratio"):
        split_validation(10, ratio)


def test_limit_episodes_draws_from_the_training_episodes() -> None:
    train = ~split_validation(206)
    limited = limit_episodes(train, 90, seed=42)
    assert limited.sum() == 90
    assert not (limited & ~train).any()
    drawn = np.random.default_rng(42).choice(202, size=90, replace=False)
    assert np.array_equal(np.flatnonzero(limited), np.sort(np.flatnonzero(train)[drawn]))
    assert np.array_equal(limit_episodes(train, None), train)
    assert np.array_equal(limit_episodes(train, 500), train)
    with pytest.raises(ConfigurationError, match="max_train_episodes"):
        limit_episodes(train, 0)
