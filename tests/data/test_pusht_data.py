"""The real Push-T demonstrations; needs the environment variable DRIFT_POLICY_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.readers.zarr import count_zarr, read_zarr
from drift_policy.data.windows import limit_episodes, split_validation

FOLDER = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "pusht/pusht_cchi_v7_replay.zarr"
pytestmark = pytest.mark.skipif(
    "DRIFT_POLICY_DATA" not in os.environ or not FOLDER.exists(),
    reason="DRIFT_POLICY_DATA does not name a folder with pusht/pusht_cchi_v7_replay.zarr",
)


def test_figures_of_the_data_set() -> None:
    assert count_zarr(FOLDER) == (206, 25_650)
    buffer = read_zarr(FOLDER, ["action", "state", "keypoint"])
    assert (buffer.n_episodes, buffer.n_steps) == (206, 25_650)
    assert (buffer.episode_lengths.min(), buffer.episode_lengths.max()) == (49, 246)
    assert (buffer.data["action"].min(), buffer.data["action"].max()) == (12, 511)
    # Fixed for ever: any other value means that a step, a number or an episode end is read differently.
    assert buffer.content_hash() == "a93bc94ce8e85e497a55881b7723984666aa7ce4b253025c8f79e90756c09762"


def test_windows_of_the_benchmark() -> None:
    buffer = read_zarr(FOLDER, ["action", "state", "keypoint"])
    validation = split_validation(buffer.n_episodes)
    assert np.flatnonzero(validation).tolist() == [18, 90, 134, 157]
    observations, action = {"obs": [Column("keypoint"), Column("state", 0, 2)]}, [Column("action")]

    def n_windows(mask: np.ndarray) -> int:
        dataset = WindowDataset(
            buffer, observations, action, horizon=16, n_obs_steps=2, n_action_steps=8, episode_mask=mask
        )
        assert dataset.batch(np.arange(4))["obs"]["obs"].shape == (4, 2, 20)
        return len(dataset)

    assert n_windows(np.ones(206, bool)) == 25_650 - 206 * 7
    assert n_windows(~validation) == 23_804
    assert n_windows(validation) == 25_650 - 206 * 7 - 23_804
    assert limit_episodes(~validation, 90).sum() == 90


def test_float_images_become_the_same_uint8_images() -> None:
    images = read_zarr(FOLDER, ["img"]).data["img"]
    assert images.dtype == np.uint8 and images.shape == (25_650, 96, 96, 3)
    stored = zarr.open_array(FOLDER / "data/img", mode="r")
    for start in (0, 12_000, 25_550):
        np.testing.assert_array_equal(images[start : start + 100], stored[start : start + 100])
