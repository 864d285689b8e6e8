"""MuJoCo HAPTIX logs of Franka Kitchen give every 40th record; damage is named."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_policy.data.readers.kitchen_mjl import NOISE_AMPLITUDE, count_kitchen_mjl, read_kitchen_mjl
from drift_policy.errors import ConfigurationError, DataError
from tests.helpers.kitchen_files import made_up_demos, mjl_bytes, mjl_order, write_mjl

COLUMNS = ["obs", "action"]
DEMO = made_up_demos((4,))[0]


def one_log(folder: Path, content: bytes) -> Path:
    path = folder / "demo.mjl"
    path.write_bytes(content)
    return path


def both_refuse(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_kitchen_mjl(path, COLUMNS)
    with pytest.raises(DataError, match=message):
        count_kitchen_mjl(path)


def test_logs_of_all_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    demos = made_up_demos()
    folder = write_mjl(tmp_path / "kitchen", demos)
    (folder / "kitchen_demos_multitask" / "._kitchen_playdata_0.mjl").write_bytes(b"a Mac's")
    buffer = read_kitchen_mjl(folder, COLUMNS)
    assert buffer.episode_lengths.tolist() == [len(demo) for demo in mjl_order(demos)]
    assert count_kitchen_mjl(folder) == (3, 15)
    for index, demo in enumerate(mjl_order(demos)):
        episode = buffer.episode(index)
        assert np.array_equal(episode["obs"][:, :30], demo.qpos[:-1].astype(np.float32))
        assert not episode["obs"][:, 30:].any()
        assert np.array_equal(episode["action"], demo.action.astype(np.float32))
    assert {name: column.dtype for name, column in buffer.data.items()} == dict.fromkeys(COLUMNS, np.dtype("float32"))
    assert list(read_kitchen_mjl(folder, ["action"]).data) == ["action"]


def test_a_single_log_is_read(tmp_path: Path) -> None:
    path = one_log(tmp_path, mjl_bytes(DEMO, header=(30, 29, 9, 0, 0, 0), name=b""))
    assert np.array_equal(read_kitchen_mjl(path, ["action"]).data["action"], DEMO.action.astype(np.float32))


def test_noise_is_bounded_repeatable_and_on_positions_alone(tmp_path: Path) -> None:
    path = one_log(tmp_path, mjl_bytes(made_up_demos((200,))[0]))
    clean = read_kitchen_mjl(path, COLUMNS).data
    noisy, again = (read_kitchen_mjl(path, COLUMNS, robot_noise_ratio=0.1).data for _ in range(2))
    assert np.array_equal(noisy["obs"], again["obs"])
    assert np.array_equal(noisy["action"], clean["action"])
    share = (noisy["obs"] - clean["obs"])[:, :30] / (0.1 * NOISE_AMPLITUDE)
    assert np.abs(share).max() <= 1.01 and (np.abs(share).max(axis=0) > 0.9).all()
    assert not noisy["obs"][:, 30:].any()


@pytest.mark.parametrize("ratio", [-0.1, float("nan"), float("inf"), "much"])
def test_a_noise_ratio_that_cannot_be_used_is_an_error(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(ConfigurationError, match="robot_noise_ratio must be a number that is not negative"):
        read_kitchen_mjl(one_log(tmp_path, mjl_bytes(DEMO)), COLUMNS, robot_noise_ratio=ratio)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "demo.mjl is no .mjl log: it has 0 bytes"),
        (mjl_bytes(DEMO)[:27], "has 27 bytes, less than a header"),
        (mjl_bytes(DEMO)[:-1], "damaged or an incomplete copy.*remove this log"),
        (mjl_bytes(DEMO) + b"\0\0\0\0", "damaged or an incomplete copy"),
        (mjl_bytes(DEMO)[:36], "incomplete copy: 0 records"),
        (struct.pack("<7i", 30, 29, 9, 0, 0, 0, 0), "incomplete copy: 0 records"),
        (struct.pack("<7i", 30, 29, 9, 0, 0, 0, 4000) + bytes(64), "incomplete copy: 0 records"),
        (struct.pack("<7i", 30, 29, -9, 0, 0, 0, 0) + bytes(400), "sizes from 0 to 100,000 are possible"),
        (struct.pack("<7i", 2**31 - 1, 29, 9, 0, 0, 0, 0) + bytes(400), "sizes from 0 to 100,000 are possible"),
        (b"PK\x03\x04" + bytes(400), "demo.mjl is no .mjl log"),
    ],
)
def test_a_damaged_log_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    both_refuse(one_log(tmp_path, content), message)


def test_the_log_of_another_model_is_refused(tmp_path: Path) -> None:
    for sizes in ((16, 16, 9), (30, 29, 7)):
        log = struct.pack("<7i", *sizes, 0, 0, 0, 0) + bytes(4 * (1 + sum(sizes)))
        both_refuse(one_log(tmp_path, log), f"another model: it has {sizes[0]} positions and {sizes[2]} actuators")


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    content = bytearray(mjl_bytes(DEMO))
    record = (len(content) - 36) // (4 * 40 - 30)
    where = 36 + 80 * record + 4 * 5
    content[where : where + 4] = struct.pack("<f", float("nan"))
    with pytest.raises(DataError, match="demo.mjl holds NaN or infinity, first at control step 2"):
        read_kitchen_mjl(one_log(tmp_path, bytes(content)), COLUMNS)


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_few_bytes_give_an_error_that_names_the_log(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = one_log(tmp_path_factory.mktemp("log"), content)
    with pytest.raises(DataError, match="demo.mjl"):
        read_kitchen_mjl(path, COLUMNS)


def test_a_folder_without_logs_and_an_unknown_column_are_errors(tmp_path: Path) -> None:
    both_refuse(tmp_path, "has no .mjl logs.*kitchen_demos_multitask.*kitchen.zip")
    with pytest.raises(DataError, match="no column 'state': the columns of this format are obs, action"):
        read_kitchen_mjl(one_log(tmp_path, mjl_bytes(DEMO)), ["state"])
