"""The images of the real Push-T demonstrations; needs the environment variable DRIFT_POLICY_DATA."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

import drift_policy
import envs  # noqa: F401  (registers the environment)
from drift_policy.config import parse_config
from drift_policy.data.dataset import WindowDataset
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.encoders import ObservationSpec
from drift_policy.task import TaskConfig, load_demonstrations, make_windows, observation_specs

TASK_FILE = Path(drift_policy.__file__).parents[1] / "configs" / "task" / "pusht_image.yaml"
FOLDER = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "pusht/pusht_cchi_v7_replay.zarr"
pytestmark = pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not FOLDER.exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with pusht/pusht_cchi_v7_replay.zarr",
)

# The stored states are rounded, so edges of the drawing may fall into the next pixel. Over the first frames of all 206
# episodes the mean difference is at most 0.17 of 255 grey levels, and at most 0.46 % of the pixels differ by over 10.
MEAN_DIFFERENCE, LARGE_DIFFERENCE, SHARE_OF_LARGE = 0.2, 10, 0.006
EPISODES = range(0, 206, 10)


@pytest.fixture(scope="module")
def task() -> TaskConfig:
    return parse_config(TaskConfig, OmegaConf.load(TASK_FILE))  # type: ignore[arg-type]  # a mapping


@pytest.fixture(scope="module")
def windows(task: TaskConfig) -> WindowDataset:
    """The windows of every tenth episode."""
    demonstrations = load_demonstrations(task, None, allow_download=False, report=lambda message: None)
    mask = np.zeros(demonstrations.buffer.n_episodes, bool)
    mask[EPISODES] = True
    sizes = {"horizon": task.horizon, "n_obs_steps": task.n_obs_steps, "n_action_steps": task.n_action_steps}
    return make_windows(task, demonstrations.buffer, mask, **sizes)


@pytest.fixture(scope="module")
def first_frames(windows: WindowDataset) -> NDArray[np.uint8]:
    """The first frame of every tenth episode, [E, 3, 96, 96]: that of the windows which begin before the episode."""
    rows = windows.rows
    first = torch.nonzero(rows[:, 0] == rows[:, 1]).flatten()
    images = windows.batch(first)["obs"]["image"]
    assert torch.equal(images[:, 0], images[:, 1])
    return images[:, 0].numpy()


@pytest.fixture(scope="module")
def first_states(windows: WindowDataset) -> NDArray[np.float32]:
    buffer = read_zarr(FOLDER, ["state"])
    return buffer.data["state"][[buffer.episode_ends[episode - 1] if episode else 0 for episode in EPISODES]]


def render(states: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the image environment shows of states [E, 5], in grey levels [E, 3, 96, 96]."""
    env = gym.make("drift_policy/PushT-v0", obs_type="image")
    return np.stack([env.reset(seed=0, options={"state": state})[0]["image"] for state in states]) * 255.0


def differences(images: NDArray[np.uint8], rendered: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return of each image the mean difference and the share of pixels that differ much."""
    difference = np.abs(images - rendered)
    return difference.mean(axis=(1, 2, 3)), (difference > LARGE_DIFFERENCE).any(axis=1).mean(axis=(1, 2))


def test_a_policy_sees_bytes_with_channels_first(task: TaskConfig, windows: WindowDataset) -> None:
    batch = windows.batch(np.array([0, 50, 99]))
    assert batch["obs"]["image"].dtype == torch.uint8 and batch["obs"]["image"].shape == (3, 2, 3, 96, 96)
    assert batch["obs"]["agent_pos"].dtype == torch.float32 and batch["obs"]["agent_pos"].shape == (3, 2, 2)
    assert batch["action"].shape == (3, 16, 2)
    assert observation_specs(task, windows) == {
        "image": ObservationSpec(kind="image", shape=[3, 96, 96], crop=[84, 84]),
        "agent_pos": ObservationSpec(shape=[2]),
    }


def test_the_environment_shows_what_the_policy_was_trained_on(task: TaskConfig, windows: WindowDataset) -> None:
    env = gym.make(task.env.id, **task.env.kwargs)
    space = {key: value.shape for key, value in env.observation_space.spaces.items()}  # type: ignore[attr-defined]
    assert space == {key: tuple(spec.shape) for key, spec in observation_specs(task, windows).items()}


def test_the_environment_renders_the_stored_images(
    first_frames: NDArray[np.uint8], first_states: NDArray[np.float32]
) -> None:
    assert len(first_frames) == len(EPISODES)
    rendered = render(first_states)
    mean, share = differences(first_frames, rendered)
    assert mean.max() < MEAN_DIFFERENCE and share.max() < SHARE_OF_LARGE, (mean.max(), share.max())
    # What the bounds are worth: images of other episodes, mirrored channels or turned axes are far outside.
    for wrong in (np.roll(first_frames, 1, axis=0), first_frames[:, ::-1], first_frames.swapaxes(2, 3)):
        wrong_mean, wrong_share = differences(wrong, rendered)
        assert wrong_mean.min() > 3 * MEAN_DIFFERENCE and wrong_share.min() > 3 * SHARE_OF_LARGE
