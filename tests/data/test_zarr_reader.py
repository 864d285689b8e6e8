"""Zarr replay buffers: every storage form gives the same data, and damage is an error instead of zeros."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Literal

import numcodecs
import numpy as np
import pytest
import zarr

from drift_policy.data.readers.zarr import count_zarr, read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.errors import DataError
from drift_policy.task import load_demonstrations
from tests.helpers.point_task import point_task

N_STEPS = 40


def make_buffer(image_dtype: str = "uint8") -> ReplayBuffer:
    rng = np.random.default_rng(0)
    data: dict[str, np.ndarray] = {
        "action": rng.normal(size=(N_STEPS, 2)).astype(np.float32),
        "keypoint": rng.normal(size=(N_STEPS, 9, 2)),
        "img": rng.integers(0, 256, (N_STEPS, 8, 8, 3)).astype(image_dtype),
    }
    return ReplayBuffer(data, np.array([15, N_STEPS]))


def write_with_small_chunks(path: Path, data: dict[str, np.ndarray], *, zarr_format: Literal[2, 3] = 2) -> None:
    root = zarr.create_group(path, zarr_format=zarr_format)
    for name, column in data.items():
        chunks = (10, *column.shape[1:])
        root.create_array(f"data/{name}", data=column, chunks=chunks, config={"write_empty_chunks": True})
    root.create_array("meta/episode_ends", data=np.array([15, N_STEPS]), chunks=(208,))


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("name", ["demos.zarr", "demos.zarr.zip"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_storage_form_gives_the_same_buffer(
    tmp_path: Path, zarr_format: Literal[2, 3], name: str, memory_map: bool
) -> None:
    buffer = make_buffer()
    write_zarr(tmp_path / name, buffer, zarr_format=zarr_format)
    read = read_zarr(tmp_path / name, memory_map=memory_map, cache_dir=tmp_path / "cache")
    assert read.content_hash() == buffer.content_hash()
    assert isinstance(read.data["img"], np.memmap) == memory_map
    assert count_zarr(tmp_path / name) == (2, N_STEPS)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != "cache") == [name]


def test_written_folder_is_plain_zarr_of_the_asked_format(tmp_path: Path) -> None:
    write_zarr(tmp_path / "two.zarr", make_buffer(), zarr_format=2)
    write_zarr(tmp_path / "three.zarr", make_buffer(), zarr_format=3, compression_level=9)
    assert (tmp_path / "two.zarr/data/img/.zarray").exists()
    assert (tmp_path / "three.zarr/data/img/zarr.json").exists()


def test_existing_files_are_not_overwritten(tmp_path: Path) -> None:
    write_zarr(tmp_path / "demos.zarr", make_buffer())
    with pytest.raises(DataError, match="exists already"):
        write_zarr(tmp_path / "demos.zarr", make_buffer())


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_float_images_of_whole_numbers_become_uint8(tmp_path: Path, layout: str, memory_map: bool) -> None:
    images = make_buffer().data["img"]
    stored = images if layout == "NHWC" else np.moveaxis(images, 3, 1)
    write_with_small_chunks(tmp_path / "demos.zarr", {"img": stored.astype(np.float32)})
    read = read_zarr(tmp_path / "demos.zarr", memory_map=memory_map, cache_dir=tmp_path / "cache").data["img"]
    assert read.dtype == np.uint8
    assert np.array_equal(read, stored)


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, 1e9])
@pytest.mark.parametrize("memory_map", [False, True])
def test_one_other_value_keeps_the_images_as_stored(tmp_path: Path, value: float, memory_map: bool) -> None:
    images = make_buffer("float32").data["img"]
    images[-1, 3, 3, 1] = value
    write_with_small_chunks(tmp_path / "demos.zarr", {"img": images})
    read = read_zarr(tmp_path / "demos.zarr", memory_map=memory_map, cache_dir=tmp_path / "cache").data["img"]
    assert read.dtype == np.float32
    assert np.array_equal(read, images)


def test_whole_numbers_outside_images_keep_their_dtype(tmp_path: Path) -> None:
    data = {"keypoint": np.ones((N_STEPS, 9, 2), np.float32), "grid": np.ones((N_STEPS, 5, 6, 7), np.float32)}
    write_with_small_chunks(tmp_path / "demos.zarr", data)
    assert {column.dtype for column in read_zarr(tmp_path / "demos.zarr").data.values()} == {np.dtype(np.float32)}


def test_only_the_named_columns_are_read(tmp_path: Path) -> None:
    write_with_small_chunks(tmp_path / "demos.zarr", make_buffer().data)
    for chunk in (tmp_path / "demos.zarr/data/img").glob("0*"):
        chunk.unlink()
    assert list(read_zarr(tmp_path / "demos.zarr", ["keypoint", "action"]).data) == ["keypoint", "action"]


def test_a_missing_column_lists_those_that_exist(tmp_path: Path) -> None:
    write_with_small_chunks(tmp_path / "demos.zarr", make_buffer().data)
    with pytest.raises(DataError, match=r"no column 'state'.*\['action', 'img', 'keypoint'\]"):
        read_zarr(tmp_path / "demos.zarr", ["action", "state"])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("column", ["data/img", "meta/episode_ends"])
def test_a_missing_chunk_is_an_error(tmp_path: Path, column: str, zarr_format: Literal[2, 3]) -> None:
    path = tmp_path / "demos.zarr"
    write_with_small_chunks(path, make_buffer().data, zarr_format=zarr_format)
    chunks = [file for file in (path / column).rglob("*") if file.is_file() and file.name[0] not in ".z"]
    chunks[0].unlink()
    for read in (read_zarr, count_zarr):
        with pytest.raises(DataError, match=f"{column.split('/')[1]}.*incomplete.*Delete it"):
            read(path)


def test_chunks_left_out_by_the_writer_can_be_allowed(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "demos.zarr")
    contacts = np.zeros((N_STEPS, 1), np.float32)
    contacts[35] = 1
    root.create_array("data/contacts", data=contacts, chunks=(10, 1), config={"write_empty_chunks": False})
    root.create_array("meta/episode_ends", data=np.array([N_STEPS]))
    with pytest.raises(DataError, match="1 of its 4 stored chunks.*allow_missing_chunks"):
        read_zarr(tmp_path / "demos.zarr")
    assert np.array_equal(read_zarr(tmp_path / "demos.zarr", allow_missing_chunks=True).data["contacts"], contacts)
    task = point_task()
    task.observations["obs"].columns[0].name = task.action[0].name = "contacts"
    task.dataset.expected_episodes, task.dataset.options = 1, {"allow_missing_chunks": True}
    found = load_demonstrations(task, str(tmp_path / "demos.zarr"), False, print)
    assert np.array_equal(found.buffer.data["contacts"], contacts)


def test_shards_are_counted_whole(tmp_path: Path) -> None:
    path = tmp_path / "demos.zarr"
    root = zarr.create_group(path)
    values = np.arange(N_STEPS, dtype=np.float32)
    root.create_array("data/x", data=values, chunks=(3,), shards=(9,), config={"write_empty_chunks": True})
    root.create_array("meta/episode_ends", data=np.array([N_STEPS]))
    assert np.array_equal(read_zarr(path).data["x"], values)
    (path / "data/x/c/4").unlink()
    with pytest.raises(DataError, match="4 of its 5 stored chunks"):
        read_zarr(path)


# Left out: any bytes are valid without a codec, and zstd ignores what follows its frame.
@pytest.mark.parametrize(
    ("codec", "damage"),
    [
        *((codec, damage) for codec in ("blosc v2", "blosc v3") for damage in ("cut", "longer", "garbage", "empty")),
        *(("zstd", damage) for damage in ("cut", "garbage", "empty")),
        *(("none", damage) for damage in ("cut", "longer", "empty")),
    ],
)
def test_damaged_chunks_name_the_file_and_column(tmp_path: Path, codec: str, damage: str) -> None:
    path, chunk = tmp_path / "demos.zarr", tmp_path / "demos.zarr/data/img/c/0/0/0/0"
    if codec == "blosc v2":
        write_zarr(path, make_buffer(), zarr_format=2)
        chunk = path / "data/img/0.0.0.0"
    elif codec == "blosc v3":
        write_zarr(path, make_buffer())
    else:
        root = zarr.create_group(path)
        root.create_array("data/img", data=make_buffer().data["img"], compressors="auto" if codec == "zstd" else None)
        root.create_array("meta/episode_ends", data=np.array([N_STEPS]))
    content = chunk.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "longer": content + b"1",
        "garbage": b"\xff" * len(content),
        "empty": b"",
    }
    chunk.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"demos\.zarr: .*'img'.* (cannot be read|is damaged).*Delete it"):
        read_zarr(path)
    with pytest.raises(DataError, match="'img'.* (cannot be read|is damaged)"):
        read_zarr(path, memory_map=True, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("img*"))


def test_damaged_zip_and_metadata(tmp_path: Path) -> None:
    write_zarr(tmp_path / "demos.zarr.zip", make_buffer())
    content = (tmp_path / "demos.zarr.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0xFF  # inside the image chunk, which is most of the file
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("cut.zip", "flipped.zip"):
        with pytest.raises(DataError, match=rf"{name}: .* cannot be read"):
            read_zarr(tmp_path / name)
    write_zarr(tmp_path / "demos.zarr", make_buffer())
    (tmp_path / "demos.zarr/data/img/zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"demos\.zarr: .* cannot be read"):
        read_zarr(tmp_path / "demos.zarr")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_zarr(tmp_path / "absent.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="not a zarr replay buffer"):
        read_zarr(tmp_path / "folder")
    zarr.create_group(tmp_path / "other.zarr").create_array("data/x", data=np.zeros(3))
    with pytest.raises(DataError, match="must hold the arrays data/<column> and meta/episode_ends"):
        read_zarr(tmp_path / "other.zarr")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.writestr("nested/.zgroup", '{"zarr_format": 2}')
    with pytest.raises(DataError, match=r"nested\.zip"):
        read_zarr(tmp_path / "nested.zip")


def test_columns_that_are_not_numbers_are_refused_only_if_wanted(tmp_path: Path) -> None:
    root = zarr.create_group(tmp_path / "demos.zarr", zarr_format=2)
    root.create_array("data/action", data=np.ones((N_STEPS, 2)))
    root.create_array("data/language", data=np.array([b"push"] * N_STEPS, "S4"))
    root.create_array("meta/episode_ends", data=np.array([N_STEPS]))
    with pytest.raises(DataError, match="'language' must be an array of numbers"):
        read_zarr(tmp_path / "demos.zarr")
    assert read_zarr(tmp_path / "demos.zarr", ["action"]).n_steps == N_STEPS


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"id": "pickle"}], "dtype": "|O"},
        {"filters": [{"id": "pickle"}]},
        {"filters": [{"id": "shuffle"}, {"id": "pickle"}]},
        {"compressor": {"id": "pickle"}},
    ],
)
def test_pickled_chunks_are_never_opened(tmp_path: Path, change: dict[str, object]) -> None:
    path, sprung = tmp_path / "demos.zarr", tmp_path / "sprung"
    write_with_small_chunks(path, {"x": np.ones(N_STEPS, np.float32)})
    metadata = json.loads((path / "data/x/.zarray").read_text())
    (path / "data/x/.zarray").write_text(json.dumps(metadata | change))
    trapped = np.empty(10, object)
    trapped[:] = [Trap(sprung)] * 10
    for chunk in range(4):
        (path / f"data/x/{chunk}").write_bytes(numcodecs.Pickle().encode(trapped))
    for columns in (None, ["x"]):
        with pytest.raises(DataError, match="'x'|list of columns"):
            read_zarr(path, columns)
    assert not sprung.exists()


def test_memory_map_is_reused_until_the_data_change(tmp_path: Path) -> None:
    path, cache = tmp_path / "demos.zarr", tmp_path / "cache"
    buffer = make_buffer()
    write_zarr(path, buffer)
    for _ in range(2):
        mapped = read_zarr(path, ["action"], memory_map=True, cache_dir=cache).data["action"]
        assert len(list(cache.iterdir())) == 1
    assert not mapped.flags.writeable
    shutil.rmtree(path)
    write_zarr(path, ReplayBuffer({"action": buffer.data["action"] + 1}, buffer.episode_ends))
    again = read_zarr(path, ["action"], memory_map=True, cache_dir=cache).data["action"]
    assert np.array_equal(again, buffer.data["action"] + 1)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_missing_codec_is_named_with_its_remedy_and_nothing_is_called_damaged(
    tmp_path: Path, zarr_format: Literal[2, 3]
) -> None:
    path = tmp_path / "real.zarr"
    write_zarr(path, make_buffer(), zarr_format=zarr_format)
    file = path / "data/img" / (".zarray" if zarr_format == 2 else "zarr.json")
    metadata = json.loads(file.read_text())
    if zarr_format == 2:
        metadata["compressor"] = {"id": "imagecodecs_jpeg2k", "level": 50}
    else:
        metadata["codecs"][-1] = {"name": "imagecodecs_jpeg2k", "configuration": {"level": 50}}
    file.write_text(json.dumps(metadata))
    assert list(read_zarr(path, ["action"]).data) == ["action"]
    for what, read in (("column 'img'", lambda: read_zarr(path, ["img"])), ("the list", lambda: count_zarr(path))):
        with pytest.raises(DataError, match=rf"{what}.* codec 'imagecodecs_jpeg2k' .*plugins=\[") as caught:
            read()
        assert "pip install imagecodecs" in str(caught.value) and "register_codecs()" in str(caught.value)
        assert not any(word in str(caught.value) for word in ("is damaged", "Delete", "copy the data set"))
