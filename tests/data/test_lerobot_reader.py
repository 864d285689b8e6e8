"""LeRobot data sets: what is read is what was written, frames belong to their steps, and damage is an error."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the package pyarrow of the lerobot extra")

from drift_policy.data.formats import FORMATS
from drift_policy.data.readers.lerobot import count_lerobot, lerobot_names, read_lerobot
from drift_policy.errors import ConfigurationError, DataError
from tests.helpers import lerobot_folders
from tests.helpers.lerobot_folders import (
    FPS,
    IMAGE_KEY,
    LENGTHS,
    VIDEO_KEY,
    change_info,
    demonstrations,
    levels,
    picture,
    write_rows,
    write_v21,
    write_v30,
    write_video,
)

WRITERS = {"v2.1": write_v21, "v3.0": write_v30}
Write = Callable[..., Path]
every_version = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_version
def test_numbers_of_any_shape_are_read_as_they_are_stored(tmp_path: Path, write: Write) -> None:
    root = write(tmp_path / "robot")
    buffer = read_lerobot(root)
    assert buffer.episode_lengths.tolist() == list(LENGTHS)
    assert buffer.data.keys() == demonstrations().keys()
    for name, values in demonstrations().items():
        wanted = values.reshape(len(values), 1) if values.ndim == 1 else values
        assert buffer.data[name].dtype == values.dtype
        assert np.array_equal(buffer.data[name], wanted), name
    assert count_lerobot(root) == (3, 12)


def test_v2_0_differs_in_its_statistics_alone(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "robot")
    (root / "meta" / "episodes_stats.jsonl").rename(root / "meta" / "stats.json")
    change_info(root, codebase_version="v2.0")
    assert np.array_equal(read_lerobot(root, ["action"]).data["action"], demonstrations()["action"])


@every_version
def test_images_in_the_rows_are_exact(tmp_path: Path, write: Write) -> None:
    images = read_lerobot(write(tmp_path / "robot", image=True), [IMAGE_KEY, "action"]).data[IMAGE_KEY]
    assert np.array_equal(images, np.stack([picture(level) for level in levels()]))


@every_version
def test_every_step_gets_its_own_video_frame(tmp_path: Path, write: Write) -> None:
    images = read_lerobot(write(tmp_path / "robot", video=True), [VIDEO_KEY]).data[VIDEO_KEY]
    assert images.shape == (12, 32, 48, 3) and images.dtype == np.uint8
    assert np.abs(images[:, 16, 20].astype(int) - levels()[:, None]).max() <= 5  # neighbours are 16 apart
    assert images[:, :, :6].max() < 30 and images[:, :, -6:].min() > 225  # not mirrored


@every_version
def test_a_camera_is_mapped_and_scaled_and_decoded_anew_when_it_changes(tmp_path: Path, write: Write) -> None:
    root = write(tmp_path / "robot", image=True)
    read = FORMATS["lerobot"].read
    options = {"memory_map": True, "cache_dir": tmp_path / "cache", "image_size": [16, 24]}
    first = read(root, [IMAGE_KEY], **options).data[IMAGE_KEY]
    assert isinstance(first, np.memmap) and first.shape == (12, 16, 24, 3)
    assert np.array_equal(first[:, 8, 12, 0], levels())
    read(root, [IMAGE_KEY], **options)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    file = sorted((root / "data/chunk-000").iterdir())[0]
    n_rows = 5 if write is write_v21 else 8
    write_rows(file, demonstrations(), np.full(12, 7, np.uint8), slice(0, n_rows))
    assert read(root, [IMAGE_KEY], **options).data[IMAGE_KEY][:n_rows, 8, 12].max() == 7
    assert read(root, [IMAGE_KEY], memory_map=True, cache_dir=tmp_path / "cache").data[IMAGE_KEY].shape[1:3] == (32, 48)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ["x", "y"]),
        ({"motors": ["x", "y"]}, ["x", "y"]),
        ([["x", "y"]], ["x", "y"]),
        ({"left": ["x"], "right": ["y"]}, ["x", "y"]),
        ({"y": 1, "x": 0}, ["x", "y"]),
        (["x"], None),
        ([0, 1], None),
        (None, None),
        ("position", None),
    ],
    ids=str,
)
@every_version
def test_numbers_are_called_as_the_data_set_says(tmp_path: Path, write: Write, names: Any, expected: Any) -> None:
    root = write(tmp_path / "robot", image=True)
    described = lerobot_folders.features(False, True)
    described["action"]["names"] = names
    change_info(root, features=described)
    state = {"observation.state": ["a", "b", "c", "d"]}
    assert lerobot_names(root) == state | ({} if expected is None else {"action": expected})


@every_version
@pytest.mark.parametrize("chosen", [[2, 0], [1], [0, 1, 2]], ids=str)
def test_chosen_episodes_are_read_alone_in_the_order_of_the_data_set(
    tmp_path: Path, write: Write, chosen: list[int]
) -> None:
    root = write(tmp_path / "robot", image=True, video=True)
    names = ["action", "observation.tactile", IMAGE_KEY, VIDEO_KEY]
    whole, part = read_lerobot(root, names), read_lerobot(root, names, episodes=chosen)
    assert part.content_hash() == whole.select_episodes(sorted(chosen)).content_hash()
    cached = {"memory_map": True, "cache_dir": tmp_path / "cache"}
    for episodes in (None, chosen, [1, 2]):
        mapped = read_lerobot(root, names, episodes=episodes, **cached)
        assert mapped.content_hash() == read_lerobot(root, names, episodes=episodes).content_hash()


def test_files_without_chosen_episodes_need_not_be_there(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "robot", image=True)
    expected = read_lerobot(root).episode(1)["action"]
    for index in (0, 2):
        (root / f"data/chunk-000/episode_{index:06d}.parquet").unlink()
    assert np.array_equal(read_lerobot(root, episodes=[1]).data["action"], expected)


@pytest.mark.parametrize("chosen", [[], [3], [-1], [0, 0], [1.0], [True], ["0"], 1, "12"], ids=str)
def test_episodes_that_cannot_be_chosen_are_refused(tmp_path: Path, chosen: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"different numbers from 0 to 2, the episodes of .*, but is"):
        read_lerobot(write_v21(tmp_path / "robot"), episodes=chosen)


def test_the_real_data_set_of_a_robot() -> None:
    folder = Path(os.environ.get("DRIFT_POLICY_DATA", "")) / "g1_bottle_lerobot"
    if not os.environ.get("DRIFT_POLICY_DATA") or not folder.is_dir():
        pytest.skip("needs g1_bottle_lerobot in the folder DRIFT_POLICY_DATA")
    assert count_lerobot(folder) == (100, 35965)
    buffer = read_lerobot(folder, ["observation.state", "action"])
    assert buffer.episode_lengths[:2].tolist() == [479, 393]
    lines = (folder / "meta" / "episodes_stats.jsonl").read_text().splitlines()
    for line in lines[::33]:  # the statistics that lerobot computed for these episodes
        entry = json.loads(line)
        for name, column in buffer.episode(entry["episode_index"]).items():
            assert column.shape[1:] == (26,)
            for statistic in ("min", "max", "mean"):
                assert np.allclose(getattr(column, statistic)(axis=0), entry["stats"][name][statistic], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "version v1.6 is none of v2.0, v2.1, v3.0. Convert it"),
        ({"total_frames": 13}, "states 13 frames, but the list of episodes has 12"),
        ({"total_episodes": 4}, "states 4 episodes, but the list of episodes has 3"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": 30}, "row 2 .*is not 30 steps a second"),
        ({"data_path": "../elsewhere/{episode_index}.parquet"}, "leads out of the folder"),
        ({"data_path": "/etc/passwd"}, "leads out of the folder"),
        ({"data_path": "data/{secret}.parquet"}, "unknown placeholder 'secret'"),
        ({"data_path": "data/{episode_index.__class__}.parquet"}, "is missing"),
        ({"data_path": None}, "no data_path"),
        ({"data_path": "data/nothing.parquet"}, "nothing.parquet is missing, although"),
        ({"chunks_size": 0}, "chunks_size"),
        ({"features": {}}, "no feature 'action': its features are"),
        ({"features": {"action": {"dtype": "float32"}}}, "cannot be read .KeyError: 'shape'"),
        (
            {"features": {"action": {"dtype": "float32", "shape": [3]}}},
            r"has 10 numbers in 5 rows.*shape \[3\]",
        ),
    ],
)
def test_a_wrong_description_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    root = write_v21(tmp_path / "robot")
    change_info(root, **changes)
    with pytest.raises(DataError, match=message):
        read_lerobot(root, ["action"])


def test_a_camera_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "robot")
    name = "../../../../elsewhere"
    change_info(root, features={name: {"dtype": "video", "shape": [32, 48, 3]}})
    with pytest.raises(DataError, match="leads out of the folder"):
        read_lerobot(root, [name])


@every_version
@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("frame_index", 2, 3, "frame_index of row 2 is 3, but 2 is expected"),
        ("episode_index", 1, 2, "episode_index of row 1 is 2, but 0 is expected"),
        ("timestamp", 4, 0.5, "row 4 .*has timestamp 0.5 s.*frames were dropped"),
        ("action", 3, np.nan, "'action' holds NaN or infinity, first at step 3"),
    ],
)
def test_wrong_rows_are_an_error(
    tmp_path: Path, write: Write, column: str, row: int, value: float, message: str
) -> None:
    root = write(tmp_path / "robot")
    columns = demonstrations()
    columns[column][row] = value
    file = sorted((root / "data/chunk-000").iterdir())[0]
    write_rows(file, columns, None, slice(0, 5 if write is write_v21 else 8))
    with pytest.raises(DataError, match=message):
        read_lerobot(root, ["action"])


@every_version
def test_missing_and_damaged_files_are_an_error(tmp_path: Path, write: Write) -> None:
    file = sorted((write(tmp_path / "cut") / "data/chunk-000").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{file.name}.*cannot be read.*Download or copy"):
        read_lerobot(tmp_path / "cut")
    file = sorted((write(tmp_path / "short") / "data/chunk-000").iterdir())[0]
    write_rows(file, demonstrations(), None, slice(0, 4))
    for read in (read_lerobot, count_lerobot):
        with pytest.raises(DataError, match="has 4 rows, but its episodes have"):
            read(tmp_path / "short")
    root = write(tmp_path / "gone")
    sorted((root / "data/chunk-000").iterdir())[0].unlink()
    for read in (read_lerobot, count_lerobot):
        with pytest.raises(DataError, match="is missing, although the list of episodes"):
            read(root)
    shutil.rmtree(root / "meta/episodes", ignore_errors=True)
    (root / "meta/episodes.jsonl").unlink(missing_ok=True)
    with pytest.raises(DataError, match="episodes"):
        count_lerobot(root)
    with pytest.raises(DataError, match="no LeRobot data set"):
        read_lerobot(tmp_path / "absent")


def test_episodes_must_be_numbered_without_gaps(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "robot")
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(DataError, match="1 is missing"):
        count_lerobot(root)


@every_version
def test_videos_that_do_not_fit_their_steps_are_an_error(tmp_path: Path, write: Write) -> None:
    root = write(tmp_path / "robot", video=True)
    file = sorted(root.rglob("*.mp4"))[0]
    n_frames = 5 if write is write_v21 else 8
    write_video(file, levels()[: n_frames - 1])
    with pytest.raises(DataError, match="ends before its episodes do"):
        read_lerobot(root, [VIDEO_KEY])
    write_video(file, levels()[:n_frames], fps=FPS / 2)
    with pytest.raises(DataError, match="has 10 frames a second, but meta/info.json says 20"):
        read_lerobot(root, [VIDEO_KEY])
    if write is write_v21:
        write_video(file, levels()[: n_frames + 1])
        with pytest.raises(DataError, match="more frames than its episode has steps"):
            read_lerobot(root, [VIDEO_KEY])
    file.write_text("#EXTM3U\nfile:///etc/hostname\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_lerobot(root, [VIDEO_KEY])
    file.unlink()
    with pytest.raises(DataError, match="Download the folder videos/ too"):
        read_lerobot(root, [VIDEO_KEY])


def test_images_that_are_none_are_an_error(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "robot", image=True)
    change_info(root, features={IMAGE_KEY: {"dtype": "image", "shape": [16, 48, 3]}})
    with pytest.raises(DataError, match="images of .* are 32 x 48 .*says 16 x 48"):
        read_lerobot(root, [IMAGE_KEY])
    change_info(root, features={IMAGE_KEY: {"dtype": "image", "shape": [32, 48]}})
    with pytest.raises(DataError, match="RGB images"):
        read_lerobot(root, [IMAGE_KEY])
    change_info(root, features=lerobot_folders.features(False, True))
    original = lerobot_folders.png
    try:
        lerobot_folders.png = lambda level: original(level)[:50]
        write_rows(root / "data/chunk-000/episode_000001.parquet", demonstrations(), levels(), slice(5, 8))
    finally:
        lerobot_folders.png = original
    with pytest.raises(DataError, match="image 5 of .*cannot be read"):
        read_lerobot(root, [IMAGE_KEY])


@pytest.mark.parametrize("size", [[32], [0, 3], [1.5, 2], "ab"])
def test_a_wrong_image_size_is_explained(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ConfigurationError, match="image_size must be"):
        read_lerobot(tmp_path, image_size=size)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for read in (read_lerobot, count_lerobot):
        with pytest.raises(ConfigurationError, match=r"drift-policy\[lerobot\]"):
            read(tmp_path)
