"""Streamed batches are those of data on the device, in the same order, and leave no processes behind."""

import csv
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from drift_policy.data.cache import CACHE_VARIABLE
from drift_policy.data.dataset import Column, WindowDataset
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.window_batches import WindowBatches
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import UserError
from drift_policy.training.batches import ResidentBatches, StreamedBatches, make_batches
from drift_policy.training.run import train
from drift_policy.training.schedule import batch_indices
from drift_policy.training.trainer_config import TrainerConfig
from tests.helpers.image_env import SIZE
from tests.helpers.image_task import image_demonstrations, image_training
from tests.helpers.training_runs import assert_same_state, press_ctrl_c, stop_before_step

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
NUM_STEPS, BATCH_SIZE, PARTS = 7, 6, 2


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    """Windows over memory-mapped images and numbers."""
    folder = tmp_path_factory.mktemp("batches")
    write_zarr(folder / "data.zarr", image_demonstrations())
    buffer = read_zarr(folder / "data.zarr", memory_map=True, cache_dir=folder / "cache")
    assert isinstance(buffer.data["img"], np.memmap)
    observations = {"image": [Column("img")], "position": [Column("state")]}
    return WindowDataset(buffer, observations, [Column("action")], horizon=8, n_obs_steps=2, n_action_steps=4)


def indices(step: int) -> Iterator[np.ndarray]:
    """The windows of both parts of a step, some of which are the same at another step."""
    return iter(np.split(batch_indices(step, 20, BATCH_SIZE, seed=0), PARTS))


def streamed(windows: WindowBatches) -> StreamedBatches:
    return StreamedBatches(windows, indices, num_steps=NUM_STEPS, device=CPU, num_workers=2)


def assert_equal(batch: Any, other: Any) -> None:
    torch.testing.assert_close(batch, other, rtol=0, atol=0)
    assert batch["obs"]["image"].dtype == torch.uint8


def wait_until_no_children() -> None:
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("first_step", [0, 4])
def test_streamed_batches_are_the_resident_ones_from_any_step_on(windows: WindowDataset, first_step: int) -> None:
    resident, stream = ResidentBatches(windows, indices), streamed(windows)
    for step in range(first_step, NUM_STEPS):
        expected, found = list(resident.step(step)), list(stream.step(step))
        assert len(found) == len(expected) == PARTS
        for batch, other in zip(found, expected, strict=True):
            assert_equal(batch, other)
            assert batch["obs"]["image"].shape == (BATCH_SIZE // PARTS, 2, 3, SIZE, SIZE)
    stream.close()


def test_a_step_out_of_turn_starts_again_there(windows: WindowDataset) -> None:
    resident, stream = ResidentBatches(windows, indices), streamed(windows)
    for step in (0, 5, 1):
        for batch, other in zip(stream.step(step), resident.step(step), strict=True):
            assert_equal(batch, other)
    stream.close()


def test_workers_leave_the_process_group_and_end_on_close(windows: WindowDataset) -> None:
    stream = streamed(windows)
    assert multiprocessing.active_children() == []  # nothing runs before the first step
    list(stream.step(0))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    # Ctrl-C and torchrun signal a whole group: workers that end with it would end the training before it has saved.
    assert all(os.getpgid(worker.pid or 0) != os.getpgid(0) for worker in workers)
    stream.close()
    wait_until_no_children()


class OnPaper(WindowBatches):
    """Windows of any size on any device, without memory."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def to(self, device: Any) -> "OnPaper":
        return self


@pytest.mark.parametrize(
    ("placement", "device", "nbytes", "memory_mapped", "kind"),
    [
        ("auto", "cpu", 10**15, False, ResidentBatches),
        ("auto", "cpu", 10, True, StreamedBatches),
        ("auto", "cuda", 499, False, ResidentBatches),
        ("auto", "cuda", 500, False, StreamedBatches),
        ("auto", "cuda", 10, True, StreamedBatches),
        ("device", "cuda", 10**15, True, ResidentBatches),
        ("stream", "cuda", 10, False, StreamedBatches),
        ("stream", "cpu", 10, False, StreamedBatches),
    ],
)
def test_placement_of_the_data(
    monkeypatch: pytest.MonkeyPatch, placement: str, device: str, nbytes: int, memory_mapped: bool, kind: type
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))  # free, total
    config = TrainerConfig(data_placement=placement)
    batches = make_batches(OnPaper(nbytes), indices, config, device=torch.device(device), memory_mapped=memory_mapped)
    assert type(batches) is kind


def test_training_from_a_stream_is_that_from_memory_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    short = {"num_steps": 6, "batch_size": 8, "log_every": 2, "validate_every": 6, "rollout_every": 0, "num_workers": 2}
    in_memory = train(image_training(tmp_path, name="memory", trainer=short), [], QUIET)
    stop_before_step(monkeypatch, 4, press_ctrl_c)
    with pytest.raises(UserError, match="Stopped at step 5"):
        train(image_training(tmp_path, name="mapped", memory_map=True, trainer=short), [], QUIET)
    wait_until_no_children()
    assert list((tmp_path / "cache" / "memory_map").glob("img-*.npy"))
    # Where the data lie does not belong to the settings that a run keeps.
    elsewhere = short | {"data_placement": "device", "num_workers": 1}
    mapped = train(image_training(tmp_path, name="mapped", memory_map=True, resume=True, trainer=elsewhere), [], QUIET)
    assert_same_state(in_memory, mapped)
    for run in (in_memory, mapped):
        with (run / "metrics.csv").open() as file:
            waits = [float(row["train/data_wait"]) for row in csv.DictReader(file)]
        assert len(waits) == 3 and all(0 < wait < 1 for wait in waits)
