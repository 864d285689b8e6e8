"""The action fan of actions that are no positions of a scene: curves, beside what was demonstrated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.evaluation import action_fan
from drift_policy.evaluation.open_loop import OpenLoopEpisode, picture_open_loop
from drift_policy.metadata_keys import NUMBER_NAMES, number_name
from tests.helpers.policies import tiny_policy


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are saved, still open."""
    figures: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(action_fan.plt, "close", figures.append)
        yield figures
    for figure in figures:
        plt.close(figure)


def windows_of(episode: int, action_dim: int) -> WindowDataset:
    rng = np.random.default_rng(0)
    columns = {"state": rng.normal(size=(60, 3)), "action": rng.uniform(100, 500, (60, action_dim))}
    buffer = ReplayBuffer({name: value.astype(np.float32) for name, value in columns.items()}, np.array([20, 60]))
    return WindowDataset(
        buffer,
        {"obs": [Column("state")]},
        [Column("action")],
        horizon=6,
        n_obs_steps=2,
        n_action_steps=3,
        episode_mask=np.arange(2) == episode,
    )


def demonstrated(axes: Axes) -> np.ndarray:
    (line,) = [line for line in axes.get_lines() if line.get_label() == "demonstrated"]
    return np.asarray(line.get_ydata())


def test_samples_are_drawn_beside_the_demonstrated_chunk(drawn: list[Figure], tmp_path: Path) -> None:
    windows, policy = windows_of(1, action_dim=6), tiny_policy(observations={"obs": 3}, action_dim=6)
    action_fan.picture_demonstrated_fan(policy, windows, tmp_path / "new" / "fan.png")
    (figure,) = drawn
    assert (tmp_path / "new" / "fan.png").is_file()
    assert len(figure.axes) == 4 * 4  # numbers of an action, moments
    first, last = figure.axes[0], figure.axes[-1]
    shown = [int(axes.get_ylabel().removeprefix("action[").removesuffix("]")) for axes in figure.axes[::4]]
    assert shown == sorted(set(shown)) and max(shown) < 6
    assert np.array_equal(demonstrated(first), windows.batch(np.array([0]))["action"][0, :, shown[0]].numpy())
    final = np.array([len(windows.episodes) - 1])
    assert np.array_equal(demonstrated(last), windows.batch(final)["action"][0, :, shown[-1]].numpy())
    assert len(first.get_lines()) == 64 + 1  # samples, the demonstration
    (executed,) = [patch for patch in first.patches if patch.get_label() == "executed"]
    assert executed.get_path().get_extents(executed.get_patch_transform()).intervalx.tolist() == [0.5, 3.5]


def test_numbers_that_the_data_name_are_called_so(drawn: list[Figure], tmp_path: Path) -> None:
    windows, policy = windows_of(0, action_dim=3), tiny_policy(observations={"obs": 3}, action_dim=3)
    policy.metadata[NUMBER_NAMES] = {"action": ["x", "y", "gripper"]}
    action_fan.picture_demonstrated_fan(policy, windows, tmp_path / "fan.png")
    called = ["action[x]", "action[y]", "action[gripper]"]
    assert [axes.get_ylabel() for axes in drawn[0].axes[:: len(drawn[0].axes) // 3]] == called
    chunks = windows.batch(np.arange(3))["action"].numpy()
    picture_open_loop(policy, OpenLoopEpisode(0, chunks, chunks, 0.0), tmp_path / "open_loop.png")
    assert [axes.get_title() for axes in drawn[1].axes[:3]] == called


@pytest.mark.parametrize("metadata", [{}, {NUMBER_NAMES: {}}, {NUMBER_NAMES: {"action": ["x"]}}, {NUMBER_NAMES: 3}])
def test_a_number_without_a_name_is_called_by_its_place(metadata: dict[str, Any]) -> None:
    assert number_name(metadata, "action", 1) == "action[1]"


def test_numbers_that_hardly_vary_are_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    policy = tiny_policy(observations={"obs": 3}, action_dim=6)
    sample_actions = policy.sample_actions

    def still_in_the_first_two(*args: object, **kwargs: object) -> object:
        assert kwargs["noise_scale"] == 1.0, "as in training"
        samples = sample_actions(*args, **kwargs).clone()  # type: ignore[arg-type]
        samples[..., :2] = 300.0
        return samples

    policy.sample_actions = still_in_the_first_two  # type: ignore[method-assign,assignment]
    action_fan.picture_demonstrated_fan(policy, windows_of(0, action_dim=6), tmp_path / "fan.png")
    assert [axes.get_ylabel() for axes in drawn[0].axes[::4]] == [f"action[{number}]" for number in range(2, 6)]
