"""Diffusion Policy's padded Kitchen arrays give the demonstrations they hold; damage is named, nothing is executed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_policy.data.readers.kitchen_numpy import count_kitchen_numpy, read_kitchen_numpy
from drift_policy.errors import DataError
from tests.helpers.kitchen_files import made_up_demos, write_numpy

COLUMNS = ["obs", "action"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_numpy(tmp_path / "kitchen", made_up_demos())


def both_refuse(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_kitchen_numpy(folder, COLUMNS)
    with pytest.raises(DataError, match=message):
        count_kitchen_numpy(folder)


def test_every_episode_has_its_true_length_and_no_padding(folder: Path) -> None:
    demos = made_up_demos()
    buffer = read_kitchen_numpy(folder, COLUMNS)
    assert buffer.episode_lengths.tolist() == [5, 3, 7]
    assert count_kitchen_numpy(folder) == (3, 15)
    for index, demo in enumerate(demos):
        episode = buffer.episode(index)
        assert np.array_equal(episode["obs"][:, :30], demo.qpos[:-1].astype(np.float32))
        assert not episode["obs"][:, 30:].any()
        assert np.array_equal(episode["action"], demo.action.astype(np.float32))
    assert list(read_kitchen_numpy(folder, ["action"]).data) == ["action"]


def test_what_lies_beside_the_arrays_is_not_opened(folder: Path) -> None:
    (folder / "onehot_goals.pth").write_bytes(b"a pickle that nobody reads")
    assert count_kitchen_numpy(folder) == (3, 15)


@pytest.mark.parametrize("name", ["observations_seq.npy", "actions_seq.npy", "existence_mask.npy"])
def test_a_missing_short_or_foreign_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for damaged in (content[:-40], content[:20], b"", b"not an array at all, but long enough to look at"):
        (folder / name).write_bytes(damaged)
        both_refuse(folder, f"{name} cannot be read.*Delete the folder")
    (folder / name).unlink()
    both_refuse(folder, f"{name} does not exist.*kitchen.zip")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_not_executed(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    np.save(folder / "actions_seq.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    both_refuse(folder, "actions_seq.npy cannot be read")
    assert not sprung.exists()


def test_an_archive_in_place_of_an_array_is_refused(folder: Path) -> None:
    with (folder / "actions_seq.npy").open("wb") as file:
        np.savez(file, np.zeros((9, 3, 9)))
    both_refuse(folder, "actions_seq.npy must hold one array of numbers")


def mask_of(*lengths: int) -> np.ndarray:
    return (np.arange(9)[:, None] < np.array(lengths)).astype(np.float32)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of(5, 0, 7), "ones, at least one, followed by zeros, but is not in column 1"),
        (mask_of(5, 3, 7)[::-1], "but is not in column 0"),
        (mask_of(5, 3, 7).T, "but is not in column"),
        (mask_of(5, 3, 7) * 0.5, "every column must be ones"),
        (np.full((9, 3), np.nan), "every column must be ones"),
        (np.ones(9), r"must have shape \[T, N\], but has \[9\]"),
        (np.zeros((9, 0)), r"must have shape \[T, N\]"),
        (mask_of(5, 3), r"observations_seq.npy has shape \[9, 3, 60\].*asks for \[9, 2, D\]|actions_seq.npy has shape"),
        (np.full((9, 3), "yes"), "existence_mask.npy must hold one array of numbers"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error(folder: Path, mask: np.ndarray, message: str) -> None:
    np.save(folder / "existence_mask.npy", mask)
    both_refuse(folder, message)


def test_arrays_with_episodes_first_are_refused(folder: Path) -> None:
    for name in ("observations_seq.npy", "actions_seq.npy", "existence_mask.npy"):
        np.save(folder / name, np.load(folder / name).swapaxes(0, 1))
    both_refuse(folder, "Time is the first axis")


def test_numbers_that_are_not_finite_are_an_error_in_a_step_and_not_in_the_padding(folder: Path) -> None:
    observations = np.load(folder / "observations_seq.npy")
    observations[8] = np.nan
    np.save(folder / "observations_seq.npy", observations)
    assert read_kitchen_numpy(folder, COLUMNS).n_steps == 15
    observations[2, 1, 4] = np.inf
    np.save(folder / "observations_seq.npy", observations)
    with pytest.raises(DataError, match=r"kitchen: Column 'obs' holds NaN or infinity, first at step 7 \(episode 1\)"):
        read_kitchen_numpy(folder, COLUMNS)


def test_an_unknown_column_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="no column 'state': the columns of this format are obs, action"):
        read_kitchen_numpy(folder, ["state"])
