"""Minari data sets of Box and Dict spaces give the episodes they hold; what is damaged or does not fit is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from drift_policy.data.readers.minari import count_minari, read_minari
from drift_policy.errors import DataError
from tests.helpers.kitchen_files import made_up_demos, write_minari

OBSERVATION = "observations/observation"
COLUMNS = [OBSERVATION, "actions"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_minari(tmp_path / "complete-v2", made_up_demos())


def main_file(folder: Path) -> Path:
    return folder / "data" / "main_data.hdf5"


def change(folder: Path, edit: Callable[[h5py.File], Any]) -> None:
    with h5py.File(main_file(folder), "r+") as file:
        edit(file)


def replace(file: h5py.File, where: str, array: Any) -> None:
    del file[where]
    file[where] = array


def test_the_last_observation_of_an_episode_is_left_out(folder: Path) -> None:
    demos = made_up_demos()
    for path in (folder, main_file(folder)):
        buffer = read_minari(path, COLUMNS)
        assert buffer.episode_lengths.tolist() == [5, 3, 7]
        assert count_minari(path) == (3, 15)
        for index, demo in enumerate(demos):
            episode = buffer.episode(index)
            assert np.array_equal(episode[OBSERVATION][:, :9], demo.qpos[:-1, :9])
            assert np.array_equal(episode[OBSERVATION][:, 9:18], demo.qvel[:-1, :9])
            assert np.array_equal(episode[OBSERVATION][:, 18:39], demo.qpos[:-1, 9:])
            assert np.array_equal(episode[OBSERVATION][:, 39:], demo.qvel[:-1, 9:])
            assert np.array_equal(episode["actions"], demo.action)


def test_any_array_of_the_episodes_is_a_column(folder: Path) -> None:
    buffer = read_minari(folder, ["observations/desired_goal/kettle", "rewards", "terminations"])
    assert {name: (column.shape, column.dtype.kind) for name, column in buffer.data.items()} == {
        "observations/desired_goal/kettle": ((15, 7), "f"),
        "rewards": ((15,), "f"),
        "terminations": ((15,), "b"),
    }
    assert buffer.data["rewards"].tolist() == [*range(5), *range(3), *range(7)]


def test_box_and_tuple_observations_are_read(tmp_path: Path) -> None:
    path = tmp_path / "box.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["total_episodes"], file.attrs["total_steps"] = 11, 22
        for number in range(11):  # 2 before 10
            group = file.create_group(f"episode_{number}")
            group.attrs["total_timesteps"] = 2  # up to Minari 0.3
            group["observations"] = np.full((3, 4), number, np.float32)
            group["actions/_index_1"] = np.full(2, number)
            group["rewards"] = np.zeros(2)
    buffer = read_minari(path, ["observations", "actions/_index_1"])
    assert buffer.data["observations"].dtype == np.float32
    assert buffer.data["observations"][:, 0].tolist() == np.repeat(np.arange(11), 2).tolist()
    assert buffer.data["actions/_index_1"].tolist() == np.repeat(np.arange(11), 2).tolist()


def test_a_missing_column_is_named_with_what_there_is(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no 'episode_0/observations/state'.*\['achieved_goal'.*Name an array"):
        read_minari(folder, ["observations/state"])
    with pytest.raises(DataError, match="'episode_0/observations' must be an array, but is a group"):
        read_minari(folder, ["observations"])
    with pytest.raises(DataError, match="'episode_0/actions' must be a group, but is an array"):
        read_minari(folder, ["actions/arm"])
    for outside in ("../episode_1/actions", "./actions", "/episode_1/actions", ""):
        with pytest.raises(DataError, match="has no 'episode_0/"):
            read_minari(folder, [outside])
    with pytest.raises(DataError, match="'episode_0/infos' must hold numbers"):
        read_minari(folder, ["infos"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file["episode_1"].attrs.modify("total_steps", 4), "3 steps, but total_steps of the episode is 4"),
        (lambda file: file["episode_1"].attrs.create("total_steps", "x"), "must be a whole number"),
        (lambda file: file.attrs.create("total_episodes", 4), "'total_episodes' states 4, but the file has 3"),
        (lambda file: file.attrs.create("total_steps", 16), "'total_steps' states 16, but the file has 15"),
        (lambda file: file.create_group("metadata"), "'metadata' is no episode"),
        (lambda file: file.__delitem__("episode_1/rewards"), "no 'episode_1/rewards'"),
        (lambda file: replace(file, "episode_1", np.zeros(3)), "'episode_1' must be a group"),
        (lambda file: replace(file, "episode_1", h5py.ExternalLink("/etc/passwd", "/x")), "a link to another place"),
        (lambda file: replace(file, "episode_1", h5py.SoftLink("/episode_0")), "a link to another place"),
        (lambda file: [file.__delitem__(name) for name in list(file)], "has no episodes"),
    ],
)
def test_a_structure_that_does_not_fit_is_named(folder: Path, edit: Callable[[h5py.File], Any], message: str) -> None:
    change(folder, edit)
    for read in (lambda: read_minari(folder, COLUMNS), lambda: count_minari(folder)):
        with pytest.raises(DataError, match=message):
            read()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 9)), "'episode_1/actions' has 2 rows, but 3 belong to an episode of 3 steps"),
        (
            np.zeros((3, 8)),
            r"'episode_1/actions' has rows \[8\] of .*, but those of 'episode_0/actions' are \[9\]",
        ),
        (np.zeros((3, 9), np.float32), r"rows \[9\] of float32"),
        (np.full((3, 9), np.nan), "'episode_1/actions' holds NaN or infinity, first at step 0"),
        (np.array([b"left"] * 3), "must hold numbers"),
    ],
)
def test_a_column_that_does_not_fit_is_an_error(folder: Path, array: np.ndarray, message: str) -> None:
    change(folder, lambda file: replace(file, "episode_1/actions", array))
    with pytest.raises(DataError, match=message):
        read_minari(folder, COLUMNS)


def test_observations_without_the_last_one_are_refused(folder: Path) -> None:
    change(folder, lambda file: replace(file, f"episode_2/{OBSERVATION}", np.zeros((7, 59))))
    with pytest.raises(DataError, match="has 7 rows, but 8 belong to an episode of 7 steps"):
        read_minari(folder, COLUMNS)


def test_damaged_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"main_data.hdf5 is not a file"):
        read_minari(tmp_path, COLUMNS)
    content = main_file(folder).read_bytes()
    main_file(folder).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"main_data.hdf5.*Delete it"):
        read_minari(folder, COLUMNS)


def test_a_recording_that_broke_off_is_refused(folder: Path) -> None:
    def broken(file: h5py.File) -> None:
        del file["episode_1/actions"]
        file["episode_1"].create_dataset("actions", (3, 9), float, chunks=(1, 9))[0] = 1.0

    change(folder, broken)
    with pytest.raises(DataError, match="'episode_1/actions'.*not stored completely"):
        read_minari(folder, COLUMNS)
