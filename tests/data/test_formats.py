"""Demonstrations that are plainly of another format than the task says are refused, and never called damaged."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from drift_policy.data.formats import check_format, container_of
from drift_policy.data.readers.npz import read_npz
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import DataError
from drift_policy.task import DatasetConfig, load_demonstrations
from tests.helpers.lerobot_folders import write_v30
from tests.helpers.point_task import point_demonstrations, point_task


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same few steps in three formats."""
    folder = tmp_path_factory.mktemp("recordings")
    write_zarr(folder / "demos.zarr", point_demonstrations())
    with h5py.File(folder / "demos.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 2))
    return {
        "zarr": folder / "demos.zarr",
        "HDF5": folder / "demos.hdf5",
        "LeRobot": write_v30(folder / "lerobot"),
    }


def test_formats_are_told_by_what_they_hold(recordings: dict[str, Path], tmp_path: Path) -> None:
    assert {name: container_of(path) for name, path in recordings.items()} == {name: name for name in recordings}
    (tmp_path / "text.hdf5").write_text("no HDF5")
    assert container_of(tmp_path / "text.hdf5") is container_of(tmp_path) is None


@pytest.mark.parametrize(
    ("found", "said", "fitting"),
    [
        ("HDF5", "zarr", "robomimic or minari"),
        ("LeRobot", "zarr", "lerobot"),
        ("zarr", "robomimic", "zarr"),
        ("zarr", "lerobot", "zarr"),
        ("HDF5", "npz", "robomimic or minari"),
    ],
)
def test_another_format_is_named_with_the_one_that_fits(
    recordings: dict[str, Path], found: str, said: str, fitting: str
) -> None:
    action_space = "delta" if said == "robomimic" else "absolute"
    dataset = DatasetConfig(name="point", relative_path="point", format=said)
    task = replace(point_task(), dataset=dataset, action_space=action_space)
    with pytest.raises(
        DataError, match=f"is {found}, but task.dataset.format is {said}: set it to {fitting},"
    ) as error:
        load_demonstrations(task, str(recordings[found]), False, lambda _: None)
    assert "elete" not in str(error.value)


def test_another_format_in_the_data_folder_is_named_before_anything_is_counted(
    recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIFT_POLICY_DATA", str(recordings["HDF5"].parent))
    dataset = DatasetConfig(name="point", relative_path="demos.hdf5", format="zarr", expected_episodes=1)
    with pytest.raises(DataError, match="is HDF5, but task.dataset.format is zarr"):
        load_demonstrations(replace(point_task(), dataset=dataset), None, False, lambda _: None)


def test_what_shows_no_format_is_left_to_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "demos.npz", episode_ends=[2], action=np.zeros((2, 1)))
    check_format(tmp_path / "demos.npz", "npz")
    check_format(tmp_path / "demos.npz", "zarr")
    (tmp_path / "not_ours").touch()

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(f"{path} may not be read")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert container_of(tmp_path / "not_ours") is None
    assert read_npz(tmp_path / "demos.npz", ["action"]).n_episodes == 1
