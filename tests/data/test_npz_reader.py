"""Replay buffers in one .npz archive: what is read is what was written, and damage is an error."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_policy.data.readers.npz import count_npz, read_arrays, read_npz
from drift_policy.errors import ConfigurationError, DataError
from drift_policy.task import ColumnConfig, DatasetConfig, EnvConfig, ObservationConfig, TaskConfig, load_demonstrations

ENDS = np.array([3, 10])


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = {
        "observation": rng.normal(size=(10, 4)).astype(np.float32),
        "action": rng.normal(size=(10, 2)),
        "episode_ends": ENDS,
        "init_qpos": np.zeros((2, 5)),
    }
    return values | changes


def write(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, **arrays(**changes))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "demos.npz")


def test_named_columns_are_read_as_they_are_stored(archive: Path) -> None:
    buffer = read_npz(archive, ["observation", "action"])
    assert buffer.episode_ends.tolist() == [3, 10]
    assert list(buffer.data) == ["observation", "action"]
    for name, column in buffer.data.items():
        assert column.dtype == arrays()[name].dtype
        assert np.array_equal(column, arrays()[name])
    assert count_npz(archive) == (2, 10)


def test_arrays_beside_the_columns_are_read_by_name(archive: Path) -> None:
    assert read_arrays(archive, ["init_qpos"])["init_qpos"].shape == (2, 5)


def test_a_missing_file_and_a_missing_array_are_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no array 'state'.*\['action', 'episode_ends', 'init_qpos', 'observation'\]"):
        read_npz(archive, ["state"])
    for read in (lambda path: read_npz(path, ["action"]), count_npz):
        with pytest.raises(DataError, match="absent.npz does not exist"):
            read(tmp_path / "absent.npz")
    np.savez(tmp_path / "no_ends.npz", action=np.zeros((3, 2)))
    for read in (lambda path: read_npz(path, ["action"]), count_npz):
        with pytest.raises(DataError, match="no array 'episode_ends'"):
            read(tmp_path / "no_ends.npz")


def test_damage_anywhere_is_found_by_reading_and_by_counting(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        entry = opened.getinfo("action.npy")
    content[entry.header_offset + 30 + len("action.npy") + entry.compress_size // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="'action' cannot be read.*Delete it"):
        read_npz(archive, ["action"])
    with pytest.raises(DataError, match="demos.npz.*Delete it"):
        count_npz(archive)


def test_a_short_copy_is_an_error(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    for read in (lambda path: read_npz(path, ["action"]), count_npz):
        with pytest.raises(DataError, match="cannot be read.*Delete it"):
            read(archive)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trapped = write(tmp_path / "demos.npz", action=np.array([Trap(sprung)] * 10, dtype=object))
    with pytest.raises(DataError, match="'action' cannot be read"):
        read_npz(trapped, ["observation", "action"])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path / "pickle.npz", ["action"])
    assert not sprung.exists()


def test_other_things_than_archives_are_refused(tmp_path: Path) -> None:
    single = io.BytesIO()
    np.save(single, np.zeros((3, 2)))
    (tmp_path / "single.npz").write_bytes(single.getvalue())
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "single.npz", ["action"])
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path / "folder.npz", ["action"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros((9, 2))}, "'action' has 9 steps"),
        ({"action": np.full((10, 2), np.nan)}, "NaN or infinity"),
        ({"action": np.array(["left"] * 10)}, "array of numbers"),
        ({"action": np.float64(1)}, "array of numbers"),
        ({"episode_ends": np.array([10, 3])}, "strictly increasing"),
        ({"episode_ends": np.array([3.0, 10.0])}, "must be integers"),
        ({"episode_ends": np.zeros(0, int)}, "is empty"),
    ],
)
def test_content_that_is_no_replay_buffer_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "demos.npz", **changes)
    with pytest.raises(DataError, match=f"demos.npz.*{message}"):
        read_npz(path, ["observation", "action"])
    if "episode_ends" in changes:
        with pytest.raises(DataError, match=f"demos.npz.*{message}"):
            count_npz(path)


def task(**dataset: Any) -> TaskConfig:
    return TaskConfig(
        name="door",
        dataset=DatasetConfig(name="door", relative_path="door/demos.npz", format="npz", **dataset),
        observations={"obs": ObservationConfig(columns=[ColumnConfig("observation")])},
        action=[ColumnConfig("action")],
        env=EnvConfig(id="none"),
    )


def test_a_task_finds_counts_and_reads_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "door").mkdir()
    write(tmp_path / "door" / "demos.npz")
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(tmp_path))
    found = load_demonstrations(task(expected_episodes=2, expected_steps=10), None, False, lambda _: None)
    assert (found.source.origin, found.buffer.n_episodes) == ("environment", 2)
    assert sorted(found.buffer.data) == ["action", "observation"]
    with pytest.raises(DataError, match="has 10 steps, but 'door' has 11"):
        load_demonstrations(task(expected_steps=11), None, False, lambda _: None)


def test_formats_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="one of zarr, npz, lerobot, robomimic, .*, but is 'csv'"):
        DatasetConfig(name="door", relative_path="demos.csv", format="csv")
    with pytest.raises(ConfigurationError, match="memory_map works with the formats zarr, lerobot, robomimic only"):
        task(memory_map=True)
