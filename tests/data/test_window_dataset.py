"""Batches of windows: shapes, values, images, statistics and wrong columns."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import ConfigurationError, DataError

LENGTHS = (12, 5, 20)
N = sum(LENGTHS)
LOW_DIM = {"obs": [Column("keypoint"), Column("state", 0, 2)]}
IMAGE = {"image": [Column("img")], "agent_pos": [Column("state", stop=2)]}
ACTION = [Column("action")]


def make_buffer() -> ReplayBuffer:
    rng = np.random.default_rng(0)
    data: dict[str, np.ndarray] = {
        "keypoint": rng.normal(size=(N, 9, 2)).astype(np.float32),
        "state": rng.normal(size=(N, 5)),
        "action": rng.normal(size=(N, 2)).astype(np.float32),
        "count": np.arange(N),
        "img": rng.integers(0, 256, (N, 6, 7, 3)).astype(np.uint8),
        "depth": rng.random((N, 6, 7, 1), np.float32),
    }
    return ReplayBuffer(data, np.cumsum(LENGTHS))


def make_dataset(
    observations: Mapping[str, Sequence[Column]] = LOW_DIM,
    action: Sequence[Column] = ACTION,
    mask: np.ndarray | None = None,
) -> WindowDataset:
    return WindowDataset(
        make_buffer(), observations, action, horizon=8, n_obs_steps=2, n_action_steps=4, episode_mask=mask
    )


def image_dataset(buffer: ReplayBuffer) -> WindowDataset:
    return WindowDataset(buffer, IMAGE, ACTION, horizon=8, n_obs_steps=2, n_action_steps=4)


def with_images(images: np.ndarray) -> ReplayBuffer:
    """The buffer of `make_buffer` with other images [N, ...]."""
    buffer = make_buffer()
    return ReplayBuffer({**buffer.data, "img": images}, buffer.episode_ends)


def test_low_dimensional_batch_has_the_values_of_the_buffer() -> None:
    buffer, dataset = make_buffer(), make_dataset()
    assert len(dataset) == sum(length - 8 + 3 + 1 + 1 for length in LENGTHS)
    batch = dataset.batch(np.array([3, 0]))
    obs, action = batch["obs"]["obs"], batch["action"]
    assert obs.shape == (2, 2, 20) and obs.dtype == torch.float32
    assert action.shape == (2, 8, 2) and action.dtype == torch.float32
    flat = np.concatenate([buffer.data["keypoint"].reshape(N, 18), buffer.data["state"][:, :2]], axis=1)
    # Windows start at steps -1, 0, 1, 2 of the first episode: number 3 at step 2, number 0 one step before the start.
    np.testing.assert_array_equal(obs[0].numpy(), flat[[2, 3]].astype(np.float32))
    np.testing.assert_array_equal(obs[1].numpy(), flat[[0, 0]].astype(np.float32))
    np.testing.assert_array_equal(action[0].numpy(), buffer.data["action"][2:10])
    np.testing.assert_array_equal(action[1].numpy(), buffer.data["action"][[0, 0, 1, 2, 3, 4, 5, 6]])


def test_images_are_uint8_with_channels_first_and_share_memory_with_the_buffer() -> None:
    buffer = make_buffer()
    dataset = image_dataset(buffer)
    batch = dataset.batch(torch.tensor([5]))
    assert batch["obs"]["image"].dtype == torch.uint8 and batch["obs"]["image"].shape == (1, 2, 3, 6, 7)
    stored = buffer.data["img"][[4, 5]]
    np.testing.assert_array_equal(batch["obs"]["image"][0].numpy(), np.moveaxis(stored, -1, -3))
    assert batch["obs"]["agent_pos"].shape == (1, 2, 2)
    buffer.data["img"][4] = 7
    assert (dataset.batch(torch.tensor([5]))["obs"]["image"][0, 0] == 7).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(6, 7), (2, 2), (96, 5)], ids=str)
def test_images_stored_with_channels_first_and_last_give_equal_batches(channels: int, size: tuple[int, int]) -> None:
    first = np.random.default_rng(1).integers(0, 256, (N, channels, *size)).astype(np.uint8)
    last = np.ascontiguousarray(np.moveaxis(first, 1, -1))
    from_first, from_last = image_dataset(with_images(first)), image_dataset(with_images(last))
    everything = np.arange(len(from_first))
    images, others = (dataset.batch(everything)["obs"]["image"] for dataset in (from_first, from_last))
    assert images.shape == (len(from_first), 2, channels, *size)
    assert torch.equal(images, others)
    assert images.is_contiguous() and others.movedim(2, -1).is_contiguous(), "neither is copied to another layout"


@pytest.mark.parametrize("shape", [(3, 6, 3), (3, 96, 1), (4, 4, 4), (6, 7, 5), (2, 6, 6), (3, 4, 1)], ids=str)
def test_images_whose_channels_cannot_be_told_are_refused(shape: tuple[int, ...]) -> None:
    buffer = with_images(np.zeros((N, *shape), np.uint8))
    with pytest.raises(DataError, match=r"'img' has shape .* it must be clear which axis the channels are") as error:
        image_dataset(buffer)
    assert str([N, *shape]) in str(error.value)


def test_memory_mapped_images_are_used_without_a_warning(tmp_path: Path) -> None:
    write_zarr(tmp_path / "demos.zarr", make_buffer())
    buffer = read_zarr(tmp_path / "demos.zarr", ["img", "state", "action"], True, tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = image_dataset(buffer)
    everything, expected = np.arange(len(dataset)), make_dataset(IMAGE)
    assert torch.equal(dataset.batch(everything)["obs"]["image"], expected.batch(everything)["obs"]["image"])


def test_only_episodes_of_the_mask_are_used_but_statistics_cover_all() -> None:
    dataset = make_dataset({"obs": [Column("count")]}, mask=np.array([False, True, False]))
    seen = dataset.batch(np.arange(len(dataset)))["obs"]["obs"]
    assert seen.min() >= 12 and seen.max() < 17
    stats = dataset.stats_arrays()
    assert stats["obs"][:, 0].tolist() == list(range(N))
    np.testing.assert_array_equal(stats["action"], make_buffer().data["action"])


def test_statistics_leave_images_out() -> None:
    stats = make_dataset(IMAGE).stats_arrays()
    assert {key: array.shape for key, array in stats.items()} == {"agent_pos": (N, 2), "action": (N, 2)}


def test_to_moves_data_and_batches() -> None:
    device = "cuda" if torch.cuda.is_available() else "meta"
    dataset = make_dataset(IMAGE)
    expected_bytes = N * (6 * 7 * 3 + 2 * 4 + 2 * 4) + len(dataset) * 8 * 8
    assert dataset.nbytes == expected_bytes
    assert dataset.to(device) is dataset
    assert dataset.device.type == device and dataset.nbytes == expected_bytes
    batch = dataset.batch(torch.zeros(3, dtype=torch.int64, device=device))
    assert batch["action"].device.type == batch["obs"]["image"].device.type == device
    assert batch["obs"]["image"].shape == (3, 2, 3, 6, 7)


def test_indices_outside_the_dataset_are_refused() -> None:
    dataset = make_dataset()
    with pytest.raises(IndexError):
        dataset.batch(np.array([len(dataset)]))


@pytest.mark.parametrize(
    ("observations", "action", "message"),
    [
        ({"obs": [Column("states")]}, ACTION, r"'obs' needs the columns \['states'\].*'keypoint', 'state'"),
        (LOW_DIM, [Column("actions")], r"'action' needs the columns \['actions'\]"),
        ({"depth": [Column("depth")]}, ACTION, "'depth' must be uint8"),
    ],
)
def test_data_that_do_not_fit(observations: dict[str, list[Column]], action: list[Column], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_dataset(observations, action)


@pytest.mark.parametrize(
    ("observations", "action", "message"),
    [
        ({}, ACTION, "at least one key"),
        ({"action": [Column("state")]}, ACTION, "'action'"),
        ({"obs": []}, ACTION, "at least one column"),
        ({"obs": [Column("state", 3, 6)]}, ACTION, "has 5 numbers"),
        ({"obs": [Column("state", 3, 3)]}, ACTION, "start=3, stop=3"),
        ({"obs": [Column("state", -2)]}, ACTION, "start=-2"),
        ({"obs": [Column("img"), Column("state")]}, ACTION, "exactly one whole column"),
        ({"obs": [Column("state"), Column("img")]}, ACTION, "exactly one whole column"),
        ({"obs": [Column("img", 0, 3)]}, ACTION, "exactly one whole column"),
        (LOW_DIM, [Column("img")], "'img' is an image"),
    ],
)
def test_configurations_that_cannot_work(
    observations: dict[str, list[Column]], action: list[Column], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_dataset(observations, action)
