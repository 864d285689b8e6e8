"""A data set that does not fit into the memory is refused before the system ends the program."""

from pathlib import Path

import numpy as np
import pytest

from drift_policy.data import memory
from drift_policy.data.memory import free_memory, in_memory
from drift_policy.data.readers.zarr import read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import DataError

MEMORY_INFO = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 2 GB of free memory, in no container."""
    (tmp_path / "meminfo").write_text(MEMORY_INFO)
    monkeypatch.setattr(memory, "_MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path / "cgroup")
    return tmp_path


def container(system: Path, limit: str, used: int, cached: int) -> None:
    (system / "cgroup").mkdir()
    for name, text in (("max", limit), ("current", str(used)), ("stat", f"anon 5\ninactive_file {cached}")):
        (system / "cgroup" / f"memory.{name}").write_text(f"{text}\n")


def test_the_free_memory_is_that_of_machine_and_container(system: Path) -> None:
    assert free_memory() == 2_000_000 * 1024
    container(system, "1000000000", 700_000_000, 200_000_000)
    assert free_memory() == 500_000_000


@pytest.mark.parametrize("limit", ["max", "9000000000"])
def test_a_wide_container_leaves_the_memory_of_the_machine(system: Path, limit: str) -> None:
    container(system, limit, 700_000_000, 0)
    assert free_memory() == 2_000_000 * 1024


def test_a_system_that_does_not_tell_refuses_nothing(system: Path) -> None:
    (system / "meminfo").write_text("MemTotal: 5 kB\n")
    assert free_memory() is None
    assert in_memory((2, 3), Path("demos"), "action")(np.float32).shape == (2, 3)


def test_columns_that_do_not_fit_are_refused(system: Path) -> None:
    allocate = in_memory((10**6, 96, 96, 3), Path("demos.zarr"), "img")
    with pytest.raises(DataError, match=r"demos\.zarr: 'img' needs 27\.6 GB .* 2\.05 GB are free.*memory_map=true"):
        allocate(np.uint8)


def test_a_reader_asks_before_it_reads(system: Path) -> None:
    steps = np.zeros((1000, 3), np.float32)
    write_zarr(system / "demos.zarr", ReplayBuffer({"action": steps}, np.array([1000])))
    assert read_zarr(system / "demos.zarr").n_steps == 1000
    (system / "meminfo").write_text("MemAvailable: 10 kB\n")
    with pytest.raises(DataError, match=r"'action' needs 1\.2e-05 GB"):
        read_zarr(system / "demos.zarr")


def test_the_first_process_of_a_machine_asks_for_all(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB are free: four processes have room for 0.5 GB each."""
    monkeypatch.setattr(memory, "_columns", [])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = in_memory((400_000_000,), Path("demos.zarr"), "img")(np.uint8)
    (system / "meminfo").write_text("MemAvailable: 1600000 kB\n")  # without the first column
    second = in_memory((200_000_000,), Path("demos.zarr"), "depth")
    with pytest.raises(DataError, match=r"'depth', .* 4 processes, needs 2 GB .* 1\.64 GB are free.*memory_map=true"):
        second(np.uint8)
    monkeypatch.setenv("LOCAL_RANK", "3")  # its memory was asked for, and the others are using theirs
    assert second(np.uint8).nbytes == 200_000_000
    monkeypatch.setenv("LOCAL_RANK", "0")
    del first
    assert second(np.uint8).nbytes == 200_000_000
