"""robomimic files of both generations give the demonstrations they hold; what is damaged or does not fit is named."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drift_policy.data.readers.robomimic import (
    RobomimicFile,
    count_robomimic,
    describe_robomimic,
    read_robomimic,
    read_start_state,
)
from drift_policy.data.readers.robomimic_actions import unconvert_actions
from drift_policy.data.readers.robomimic_environment import RobomimicEnvironment
from drift_policy.errors import ConfigurationError, DataError
from tests.helpers.robomimic_files import DemoFile, env_args

IN_ORDER = ["demo_0", "demo_1", "demo_2", "demo_10"]
STEPS = 18


def changed(path: Path, change: Callable[[h5py.File], None]) -> Path:
    """Write a file with cameras and a filter key, then change it."""
    DemoFile(image_size=8, masks={"train": ["demo_0", "demo_2"]}).write(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(file: h5py.File, where: str, array: Any, **options: Any) -> None:
    del file[where]
    file.create_dataset(where, data=array, **options)


@pytest.mark.parametrize("generation", ["1.4", "1.5"])
@pytest.mark.parametrize("arms", [1, 2])
def test_demonstrations_come_in_numerical_order(tmp_path: Path, generation: str, arms: int) -> None:
    demos = DemoFile(generation=generation, arms=arms, image_size=8)
    path = demos.write(tmp_path / "demo.hdf5")
    buffer = read_robomimic(path)
    assert buffer.episode_ends.tolist() == [5, 8, 14, 18]
    assert set(buffer.data) == {key.removeprefix("obs/") for key in demos.demo("demo_0") if key[:4] == "obs/"} | {
        "action"
    }
    for name, column in buffer.data.items():
        expected = demos.column("actions" if name == "action" else f"obs/{name}", IN_ORDER)
        assert column.dtype == expected.dtype
        np.testing.assert_array_equal(column, expected)
    assert buffer.data["robot0_eye_in_hand_image"].shape == (STEPS, 8, 8, 3)
    assert count_robomimic(path) == (4, STEPS)


def test_only_the_named_columns_are_read(tmp_path: Path) -> None:
    def damage(file: h5py.File) -> None:
        del file["data/demo_1/obs/robot0_eef_quat"]

    path = changed(tmp_path / "demo.hdf5", damage)
    assert list(read_robomimic(path, ["robot0_eef_pos", "action"]).data) == ["robot0_eef_pos", "action"]
    assert list(read_robomimic(path, ["object"]).data) == ["object"]


@pytest.mark.parametrize("as_text", [False, True])
def test_filter_keys_choose_demonstrations(tmp_path: Path, as_text: bool) -> None:
    masks = {"train": ["demo_10", "demo_0"], "20_percent": ["demo_2"]}
    demos = DemoFile(masks=masks)
    path = demos.write(tmp_path / "demo.hdf5")
    if as_text:  # as h5py stores a list of Python strings
        with h5py.File(path, "r+") as file:
            replaced(file, "mask/train", masks["train"], dtype=h5py.string_dtype())
    buffer = read_robomimic(path, filter_key="train")
    assert buffer.episode_lengths.tolist() == [5, 4]
    np.testing.assert_array_equal(buffer.data["object"], demos.column("obs/object", ["demo_0", "demo_10"]))
    assert read_robomimic(path, filter_key="20_percent").n_steps == 6
    assert describe_robomimic(path).filter_keys == ("20_percent", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["demo_0", "demo_7"], r"'mask/train' names \['demo_7'\], which '/data' does not have"),
        (["demo_0", "demo_0"], "'mask/train' names none or one twice"),
        ([], "'mask/train' names none or one twice"),
    ],
)
def test_wrong_filter_keys_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    path = changed(tmp_path / "demo.hdf5", lambda file: replaced(file, "mask/train", np.array(names, dtype="S8")))
    with pytest.raises(DataError, match=message):
        read_robomimic(path, filter_key="train")
    with pytest.raises(DataError, match=r"no 'mask/valid'.*\['train'\].*filter key"):
        read_robomimic(path, filter_key="valid")
    bare = DemoFile().write(tmp_path / "bare.hdf5")
    with pytest.raises(DataError, match="no 'mask'.*none for all demonstrations"):
        read_robomimic(bare, filter_key="train")


@pytest.mark.parametrize("generation", ["1.4", "1.5"])
def test_a_file_describes_itself(tmp_path: Path, generation: str) -> None:
    path = DemoFile(generation=generation).write(tmp_path / "demo.hdf5")
    written = env_args(generation)
    assert describe_robomimic(path) == RobomimicFile(
        environment=RobomimicEnvironment("Lift", written["env_kwargs"], written["env_version"], 1),
        demos=tuple(IN_ORDER),
        n_steps=STEPS,
        filter_keys=(),
    )


def test_start_states_are_those_of_the_named_demonstration(tmp_path: Path) -> None:
    demos = DemoFile()
    path = demos.write(tmp_path / "demo.hdf5")
    start = read_start_state(path, "demo_10")
    np.testing.assert_array_equal(start.state, demos.demo("demo_10")["states"][0])
    assert start.model == "<mujoco model='demo_10'/>"
    with pytest.raises(DataError, match=r"no 'data/demo_5'.*\['demo_0', 'demo_1', 'demo_10', 'demo_2'\]"):
        read_start_state(path, "demo_5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0"].attrs["model_file"]
        file["data/demo_1/states"][0, 3] = np.nan
        replaced(file, "data/demo_2/states", np.zeros(6))
    assert read_start_state(path, "demo_0").model is None
    with pytest.raises(DataError, match="'data/demo_1/states' holds NaN"):
        read_start_state(path, "demo_1")
    with pytest.raises(DataError, match=r"'data/demo_2/states' must be \[T, D\]"):
        read_start_state(path, "demo_2")


# --- actions ---


@pytest.mark.parametrize("arms", [1, 2])
def test_absolute_actions_become_6d_and_come_back(tmp_path: Path, arms: int) -> None:
    demos = DemoFile(arms=arms, absolute=True)
    actions = read_robomimic(demos.write(tmp_path / "abs.hdf5"), ["action"], action_mode="absolute").data["action"]
    stored = demos.column("actions", IN_ORDER)
    assert actions.shape == (STEPS, 10 * arms)
    for arm in range(arms):
        ours, theirs = actions[:, 10 * arm :][:, :10], stored[:, 7 * arm :][:, :7]
        rows = Rotation.from_rotvec(theirs[:, 3:6]).as_matrix()[:, :2].reshape(STEPS, 6)
        np.testing.assert_allclose(ours, np.concatenate([theirs[:, :3], rows, theirs[:, 6:]], axis=1), atol=1e-14)
    np.testing.assert_allclose(unconvert_actions(actions), stored, atol=1e-12)


def test_actions_that_are_no_poses_are_named(tmp_path: Path) -> None:
    def shorten(file: h5py.File) -> None:
        for name in IN_ORDER:
            replaced(file, f"data/{name}/actions", file[f"data/{name}/actions"][:, :6] + 3)

    with pytest.raises(DataError, match=r"'data/demo_0/actions' cannot be absolute.*these have 6"):
        read_robomimic(changed(tmp_path / "demo.hdf5", shorten), ["action"], action_mode="absolute")


def test_added_absolute_actions_are_preferred_in_absolute_mode(tmp_path: Path) -> None:
    delta, absolute = DemoFile(), DemoFile(absolute=True)
    path = delta.write(tmp_path / "demo.hdf5")
    with h5py.File(path, "r+") as file:
        for name in IN_ORDER:
            file[f"data/{name}/actions_abs"] = absolute.demo(name)["actions"]
    stored = read_robomimic(path, ["action"]).data["action"]
    np.testing.assert_array_equal(stored, delta.column("actions", IN_ORDER))
    poses = read_robomimic(path, ["action"], action_mode="absolute").data["action"]
    np.testing.assert_allclose(unconvert_actions(poses), absolute.column("actions", IN_ORDER), atol=1e-12)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/actions_abs"]
    with pytest.raises(DataError, match="no 'data/demo_2/actions_abs'"):
        read_robomimic(path, ["action"], action_mode="absolute")


@pytest.mark.parametrize("generation", ["1.4", "1.5"])
def test_actions_of_the_other_mode_are_noticed(tmp_path: Path, generation: str) -> None:
    delta = DemoFile(generation=generation).write(tmp_path / "delta.hdf5")
    absolute = DemoFile(generation=generation, absolute=True).write(tmp_path / "abs.hdf5")
    with pytest.raises(DataError, match=r"lie in \[-1, 1\], so they are delta actions.*action_mode='delta'"):
        read_robomimic(delta, ["action"], action_mode="absolute")
    with pytest.raises(DataError, match=r"leave \[-1, 1\], so they are absolute actions.*action_mode='absolute'"):
        read_robomimic(absolute, ["action"])
    with pytest.raises(ConfigurationError, match="action_mode must be one of"):
        read_robomimic(delta, action_mode="relative")  # type: ignore[arg-type]


def test_other_simulators_and_controllers_are_read_as_asked(tmp_path: Path) -> None:
    path = DemoFile(absolute=True).write(tmp_path / "own.hdf5")
    joints = {"controller_configs": {"type": "JOINT_POSITION"}}
    for description in (env_args(type=2), env_args(env_kwargs=joints), None):
        with h5py.File(path, "r+") as file:
            if description is None:
                del file["data"].attrs["env_args"]
            else:
                file["data"].attrs["env_args"] = json.dumps(description)
        assert read_robomimic(path, ["action"]).data["action"].shape == (STEPS, 7)
        assert read_robomimic(path, ["action"], action_mode="absolute").data["action"].shape == (STEPS, 10)


# --- memory maps ---


def test_memory_mapped_images_are_those_of_the_subset(tmp_path: Path) -> None:
    demos = DemoFile(image_size=8, masks={"train": ["demo_2", "demo_1"]})
    path, camera = demos.write(tmp_path / "demo.hdf5"), "robot0_eye_in_hand_image"
    for key, names in ((None, IN_ORDER), ("train", ["demo_1", "demo_2"]), (None, IN_ORDER)):
        buffer = read_robomimic(path, [camera, "object", "action"], True, tmp_path / "cache", filter_key=key)
        mapped = buffer.data[camera]
        assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
        assert not any(isinstance(buffer.data[name], np.memmap) for name in ("object", "action"))
        np.testing.assert_array_equal(mapped, demos.column(f"obs/{camera}", names))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_images_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drift_policy.data.blocks.BLOCK_BYTES", 8 * 8 * 3)
    demos = DemoFile(lengths={"demo_0": 7, "demo_1": 3}, image_size=8)
    path, lengths = demos.write(tmp_path / "demo.hdf5"), []
    read_direct = h5py.Dataset.read_direct

    def recorded(self: h5py.Dataset, target: np.ndarray, source: slice, rows: slice) -> None:
        lengths.append(source.stop - source.start)
        read_direct(self, target, source, rows)

    monkeypatch.setattr(h5py.Dataset, "read_direct", recorded)
    read = read_robomimic(path, ["robot0_eye_in_hand_image"]).data["robot0_eye_in_hand_image"]
    assert lengths == [2, 2, 2, 1, 2, 1]  # whole chunks, which have two images
    np.testing.assert_array_equal(read, demos.column("obs/robot0_eye_in_hand_image", ["demo_0", "demo_1"]))


# --- damage and strange content ---

CAMERA = "data/demo_1/obs/robot0_eye_in_hand_image"
ZEROS = np.zeros((3, 8, 8, 3))


def put(where: str, array: Any, **options: Any) -> Callable[[h5py.File], None]:
    return lambda file: replaced(file, where, array, **options)


def drop(where: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(where)


def set_value(where: str, index: Any, value: float) -> Callable[[h5py.File], None]:
    return lambda file: file[where].__setitem__(index, value)


def set_attribute(where: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.__setitem__(name, value)


def set_link(where: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[where]
        file[where] = link

    return change


def unwritten(chunks: bool) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[CAMERA]
        file.create_dataset(CAMERA, (3, 8, 8, 3), np.uint8, chunks=(1, 8, 8, 3) if chunks else None)
        if chunks:
            file[CAMERA][:2] = 7

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("data"), "no 'data': '/' has .'mask'.*Expected a robomimic file"),
        (drop("data/demo_1/actions"), "no 'data/demo_1/actions'"),
        (drop("data/demo_1/obs"), "no 'data/demo_1/obs'.*dataset_states_to_obs"),
        (drop("data/demo_1/obs/object"), "no 'data/demo_1/obs/object': '/data/demo_1/obs' has .'robot0_eef_pos'"),
        (put("data/demo_1/obs", np.zeros(3)), "'data/demo_1/obs' must be a group"),
        (lambda file: file.create_group("data/other"), "'data/other' is no demonstration"),
        (put("data/demo_1/actions", np.zeros((3, 7), int)), r"'data/demo_1/actions' must be floats \[T, Da\]"),
        (put("data/demo_1/actions", np.zeros(3)), r"'data/demo_1/actions' must be floats .* shape \[3\]"),
        (put("data/demo_1/actions", np.zeros((3, 6))), r"'data/demo_1/actions' has shape \[3, 6\].*expected \[3, 7\]"),
        (put("data/demo_1/actions", np.zeros((0, 7))), r"'data/demo_1/actions' must hold numbers .* shape \[0, 7\]"),
        (put("data/demo_1/actions", np.zeros((4, 7))), "'data/demo_1/actions' has 4 steps, but num_samples .* is 3"),
        (put("data/demo_1/actions", h5py.Empty("f8")), "'data/demo_1/actions' must be an array"),
        (drop("data/demo_10"), "'total' of '/data' states 18 steps, but the demonstrations have 14"),
        (put("data/demo_1/obs/object", np.zeros((4, 10))), "'data/demo_1/obs/object' has 4 steps, .* demo_1 have 3"),
        (put("data/demo_1/obs/object", np.zeros((3, 9))), r"'data/demo_1/obs/object' has rows \[9\].*demo_0.*\[10\]"),
        (put("data/demo_1/obs/object", np.zeros((3, 10), "f4")), "'data/demo_1/obs/object' .*float32.*float64"),
        (put("data/demo_1/obs/object", ["a", "b", "c"]), "'data/demo_1/obs/object' must hold numbers.*dtype object"),
        (put("data/demo_1/obs/object", 1.0), r"'data/demo_1/obs/object' must hold numbers .* shape \[\]"),
        (set_value("data/demo_1/obs/object", (2, 3), np.nan), "'data/demo_1/obs/object' holds NaN.*at step 2"),
        (set_value("data/demo_1/actions", (1, 6), np.inf), "'data/demo_1/actions' holds NaN or infinity.*step 1"),
        (put("data/demo_0/obs/robot0_eye_in_hand_image", np.zeros((5, 8, 8, 3))), "images must be uint8"),
        (put("data/demo_0/obs/robot0_eye_in_hand_image", np.zeros((5, 3, 8, 8), "u1")), r"uint8 \[T, H, W, 3\]"),
        (put(CAMERA, ZEROS.astype("u1")[:, :4]), r"has rows \[4, 8, 3\].*demo_0.* are \[8, 8, 3\]"),
        (unwritten(chunks=False), f"'{CAMERA}' .*not stored completely"),
        (unwritten(chunks=True), f"'{CAMERA}' .*not stored completely"),
        (set_attribute("data", "total", "many"), "'total' of '/data' must be a whole number"),
        (set_attribute("data/demo_1", "num_samples", 3.0), "'num_samples' of '/data/demo_1' must be a whole number"),
        (set_attribute("data", "env_args", 3), "'env_args' of '/data' must be a text, but is int64"),
        (set_attribute("data", "env_args", np.bytes_(b"\xff")), "'env_args' of '/data' cannot be read"),
        (set_attribute("data", "env_args", "{"), "'env_args' of '/data' is no JSON"),
        (set_attribute("data", "env_args", "[1]"), "'env_args' of '/data' must be a JSON object"),
        (set_link("data/demo_1/actions", h5py.SoftLink("/data/demo_0/actions")), "'data/demo_1/actions' is a link"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    path = changed(tmp_path / "demo.hdf5", change)
    with pytest.raises(DataError, match=rf"demo\.hdf5.*{message}"):
        read_robomimic(path)
    with pytest.raises(DataError, match=message):
        read_robomimic(path, memory_map=True, cache_dir=tmp_path / "cache")


def test_strange_key_names_lead_nowhere(tmp_path: Path) -> None:
    path = DemoFile().write(tmp_path / "demo.hdf5")
    for key in ("/data/demo_0/actions", "../actions", ".", "", "robot0_eef_pos/.", "nothing"):
        with pytest.raises(DataError, match="has no 'data/demo_0/obs/"):
            read_robomimic(path, [key])


def test_arrays_of_other_files_are_never_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.full((3, 7), 0.5).tobytes())
    other = DemoFile().write(tmp_path / "other.hdf5")
    layout = h5py.VirtualLayout((3, 7), "f8")
    layout[:] = h5py.VirtualSource(other, "data/demo_1/actions", (3, 7))
    where = "data/demo_1/actions"

    def external(file: h5py.File) -> None:
        del file[where]
        file.create_dataset(where, (3, 7), "f8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])

    def virtual(file: h5py.File) -> None:
        del file[where]
        file.create_virtual_dataset(where, layout)

    for change, message in (
        (external, "stored in other files"),
        (virtual, "stored in other files"),
        (set_link(where, h5py.ExternalLink(str(other), where)), "is a link"),
        (set_link("data/demo_1", h5py.ExternalLink(str(other), "data/demo_1")), "is a link"),
    ):
        with pytest.raises(DataError, match=message):
            read_robomimic(changed(tmp_path / "demo.hdf5", change), ["action"])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = DemoFile(image_size=16).write(tmp_path / "demo.hdf5")
    with h5py.File(path) as file:
        chunk = file[CAMERA].id.get_chunk_info(0)
    content = path.read_bytes()
    for name, damaged in (
        ("cut", content[: len(content) // 2]),
        ("garbage", b"\xff" * len(content)),
        ("empty", b""),
        ("chunk", content[: chunk.byte_offset] + b"\xff" * chunk.size + content[chunk.byte_offset + chunk.size :]),
    ):
        file_path = tmp_path / f"{name}.hdf5"
        file_path.write_bytes(damaged)
        where = CAMERA if name == "chunk" else "header"
        with pytest.raises(DataError, match=rf"{name}\.hdf5: .*{where}.* cannot be read.*damaged.*Delete it"):
            read_robomimic(file_path)
        with pytest.raises(DataError, match=rf"{name}\.hdf5: .*{where}.* cannot be read"):
            read_robomimic(file_path, memory_map=True, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("robot0_eye*"))
    for absent in (tmp_path / "absent.hdf5", tmp_path):
        with pytest.raises(DataError, match="is not a file"):
            read_robomimic(absent)


def test_descriptions_that_are_missing_or_too_long_are_refused(tmp_path: Path) -> None:
    path = DemoFile().write(tmp_path / "demo.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(DataError, match="'/data' has no attribute 'env_args'"):
        describe_robomimic(path)
    long = h5py.File(tmp_path / "long.hdf5", "w", libver="latest")  # older layouts store no attribute of this size
    with h5py.File(path) as file, long:
        file.copy("data", long)
        long["data"].attrs["env_args"] = json.dumps(env_args()) + " " * 2**20
    with pytest.raises(DataError, match="'env_args' of '/data' has 1,0.* bytes; more than 1,048,576 are refused"):
        describe_robomimic(tmp_path / "long.hdf5")


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = DemoFile().write(tmp_path / "demo.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'drift-policy\[hdf5\]'"):
        read_robomimic(path)
