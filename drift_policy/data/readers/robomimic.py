"""Demonstrations in robomimic's HDF5 format, of robosuite 1.4 and 1.5: `data/demo_<i>/{obs/<key>, actions, states}`.

`data` has the attributes `env_args` (JSON, see robomimic_environment) and `total` (steps of all demonstrations), a
demonstration `num_samples` and `model_file` (the MuJoCo model). `mask/<filter key>` lists names of demonstrations.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from drift_policy.data.memory import in_memory
from drift_policy.data.memory_map import memory_mapped
from drift_policy.data.readers.hdf5 import (
    GET_AGAIN,
    check_numbers,
    child_array,
    child_group,
    copy_rows,
    damage_reported,
    integer_attribute,
    members,
    open_hdf5,
    place,
    read_names,
    text_attribute,
)
from drift_policy.data.readers.robomimic_actions import convert_actions
from drift_policy.data.readers.robomimic_environment import RobomimicEnvironment, parse_environment
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError, require

if TYPE_CHECKING:
    import h5py

ACTION = "action"  # the column of the replay buffer; every other column is an observation key
ActionMode = Literal["delta", "absolute", "stored"]
ACTION_MODES = ("delta", "absolute", "stored")
MAX_ENV_ARGS_BYTES = 2**20
MAX_MODEL_BYTES = 2**26
NO_OBSERVATIONS = "Extract the observations first, with robomimic's dataset_states_to_obs.py."


@dataclass(frozen=True)
class RobomimicFile:
    """What a file says about itself."""

    environment: RobomimicEnvironment
    demos: tuple[str, ...]  # names in numerical order, which is that of the episodes
    n_steps: int  # of all demonstrations together
    filter_keys: tuple[str, ...]  # names of subsets, such as "train", "valid", "20_percent"


@dataclass(frozen=True)
class StartState:
    """Where a demonstration starts in the simulator."""

    state: NDArray[np.float64]  # [D] flattened MuJoCo state
    model: str | None  # MuJoCo's XML of the scene, if stored


@dataclass(frozen=True)
class _Demo:
    name: str
    group: "h5py.Group"
    n_steps: int


def read_robomimic(
    path: str | Path,
    columns: Sequence[str] | None = None,
    memory_map: bool = False,
    cache_dir: str | Path | None = None,
    *,
    action_mode: ActionMode = "delta",
    filter_key: str | None = None,
) -> ReplayBuffer:
    """Read observations and actions as a replay buffer, one episode a demonstration, in numerical order.

    Columns keep their stored dtype. Images are uint8 [N, H, W, 3].

    Args:
        path: the HDF5 file.
        columns: observation keys, and "action" for the actions; None is all of them.
        memory_map: decode each camera once into a .npy file in the cache and map that file instead of filling RAM.
        cache_dir: folder of those .npy files; None is `memory_map` in the cache folder.
        action_mode: "delta" reads the delta `actions` of robosuite. "absolute" reads absolute poses and makes their
            rotations six numbers (see robomimic_actions): `actions_abs` where the file has it beside the delta
            `actions` (robomimic adds it), otherwise `actions` (the *_abs.hdf5 files of Diffusion Policy). "stored"
            reads `actions` as they are, whatever they mean: joint targets of a real robot, for example.
        filter_key: read only the demonstrations listed in `mask/<filter_key>`; None reads all.

    Raises:
        ConfigurationError: an unknown action mode, or h5py is not installed.
        DataError: the file, a demonstration or a column is missing, damaged or of another shape or type, or the actions
            are plainly not of the given mode. The message names the path inside the file.
    """
    require(action_mode in ACTION_MODES, f"action_mode must be one of {list(ACTION_MODES)}, but is {action_mode!r}.")
    path = Path(path)
    with open_hdf5(path) as file:
        demos = _filtered(_demos(file, path), file, path, filter_key)
        if columns is None:
            columns = [*members(child_group(demos[0].group, "obs", path, NO_OBSERVATIONS), path), ACTION]
        data = {}
        for name in columns:
            if name == ACTION:
                data[name] = _read_actions(demos, file, path, action_mode)
                continue
            arrays = _observation_arrays(demos, name, path)
            read = partial(_joined, arrays, path)
            shape = (sum(demo.n_steps for demo in demos), *arrays[0].shape[1:])
            if memory_map and len(shape) == 4:
                subset = "all" if filter_key is None else f"mask/{filter_key}"
                data[name] = memory_mapped(path, f"{subset}/obs/{name}", read, shape, cache_dir)
            else:
                data[name] = read(in_memory(shape, path, name))
    return ReplayBuffer(data, np.cumsum([demo.n_steps for demo in demos]))


def describe_robomimic(path: str | Path) -> RobomimicFile:
    """Return what a file says about its simulator and its demonstrations.

    Raises:
        ConfigurationError: h5py is not installed.
        DataError: the file or its `env_args` are missing or damaged.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        demos = _demos(file, path)
        environment = _environment(file, path)
        if environment is None:
            raise DataError(
                f"{path}: '/data' has no attribute 'env_args', which names the simulator: it is no complete robomimic "
                "file."
            )
        return RobomimicFile(
            environment=environment,
            demos=tuple(demo.name for demo in demos),
            n_steps=sum(demo.n_steps for demo in demos),
            filter_keys=tuple(members(child_group(file, "mask", path), path)) if "mask" in members(file, path) else (),
        )


def count_robomimic(path: str | Path) -> tuple[int, int]:
    """Return (episodes, steps) of a file after checking the sizes that it states; errors as `read_robomimic`."""
    path = Path(path)
    with open_hdf5(path) as file:
        demos = _demos(file, path)
    return len(demos), sum(demo.n_steps for demo in demos)


def read_start_state(path: str | Path, demo: str) -> StartState:
    """Return the first state of a demonstration, such as "demo_0", and the model it belongs to.

    Raises:
        ConfigurationError: h5py is not installed.
        DataError: the demonstration or its `states` are missing or damaged.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        group = child_group(child_group(file, "data", path), demo, path)
        states = child_array(group, "states", path)
        check_numbers(states, path)
        if states.ndim != 2:
            raise DataError(f"{path}: '{place(group, 'states')}' must be [T, D], but has shape {list(states.shape)}.")
        with damage_reported(path, f"'{place(group, 'states')}'"):
            first = np.asarray(states[0], dtype=np.float64)
        if not np.isfinite(first).all():
            raise DataError(f"{path}: '{place(group, 'states')}' holds NaN or infinity at step 0.")
        return StartState(first, text_attribute(group, "model_file", path, MAX_MODEL_BYTES))


def _demos(file: "h5py.File", path: Path) -> list[_Demo]:
    """Return all demonstrations in numerical order, with their lengths checked against those that the file states."""
    data = child_group(file, "data", path, "Expected a robomimic file, with demonstrations data/demo_<number>.")
    numbers = {}
    for name in members(data, path):
        match = re.fullmatch(r"demo_([0-9]{1,15})", name)
        if match is None:
            raise DataError(f"{path}: '{place(data, name)}' is no demonstration: names must be data/demo_<number>.")
        numbers[name] = int(match.group(1))
    if not numbers:
        raise DataError(f"{path} has no demonstrations: '/data' is empty.")
    demos = [_demo(data, name, path) for name in sorted(numbers, key=lambda name: (numbers[name], name))]
    stated, found = integer_attribute(data, "total", path), sum(demo.n_steps for demo in demos)
    if stated not in (None, found):
        raise DataError(
            f"{path}: attribute 'total' of '/data' states {stated} steps, but the demonstrations have {found}: some "
            f"are missing. {GET_AGAIN}"
        )
    return demos


def _demo(data: "h5py.Group", name: str, path: Path) -> _Demo:
    group = child_group(data, name, path)
    actions = child_array(group, "actions", path, GET_AGAIN)
    where = place(group, "actions")
    check_numbers(actions, path)
    if actions.ndim != 2 or actions.dtype.kind != "f":
        raise DataError(
            f"{path}: '{where}' must be floats [T, Da], but is {actions.dtype} with shape {list(actions.shape)}."
        )
    stated = integer_attribute(group, "num_samples", path)
    if stated not in (None, len(actions)):
        raise DataError(
            f"{path}: '{where}' has {len(actions)} steps, but num_samples of the demonstration is {stated}. {GET_AGAIN}"
        )
    return _Demo(name, group, len(actions))


def _filtered(demos: list[_Demo], file: "h5py.File", path: Path, filter_key: str | None) -> list[_Demo]:
    if filter_key is None:
        return demos
    hint = "Give one of these as filter key, or none for all demonstrations."
    names = read_names(child_array(child_group(file, "mask", path, hint), filter_key, path, hint), path)
    missing = sorted(set(names) - {demo.name for demo in demos})
    if missing or not names or len(set(names)) != len(names):
        fault = f"names {missing[:10]}, which '/data' does not have" if missing else "names none or one twice"
        raise DataError(f"{path}: 'mask/{filter_key}' {fault}. Correct it, or choose another filter key.")
    return [demo for demo in demos if demo.name in names]


def _observation_arrays(demos: list[_Demo], key: str, path: Path) -> "list[h5py.Dataset]":
    """Return the array of an observation key of every demonstration, [T, ...], checked to fit together."""
    arrays = [child_array(child_group(demo.group, "obs", path, NO_OBSERVATIONS), key, path) for demo in demos]
    first = arrays[0]
    for demo, array in zip(demos, arrays, strict=True):
        where = array.name.lstrip("/")
        check_numbers(array, path)
        if len(array) != demo.n_steps:
            raise DataError(
                f"{path}: '{where}' has {len(array)} steps, but the actions of {demo.name} have {demo.n_steps}: "
                "observations and actions must be equally long."
            )
        if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
            raise DataError(
                f"{path}: '{where}' has rows {list(array.shape[1:])} of {array.dtype}, but those of "
                f"'{first.name.lstrip('/')}' are {list(first.shape[1:])} of {first.dtype}: all must be alike."
            )
        if array.ndim > 4 or (array.ndim == 4 and (array.dtype != np.uint8 or array.shape[3] != 3)):
            raise DataError(
                f"{path}: '{where}' has shape {list(array.shape)} and dtype {array.dtype}, but images must be uint8 "
                "[T, H, W, 3]."
            )
    return arrays


def _joined(
    arrays: "Sequence[h5py.Dataset]", path: Path, allocate: Callable[[DTypeLike], NDArray[Any]]
) -> NDArray[Any]:
    """Copy arrays [T, ...], one after the other, into memory that `allocate` gives for their dtype."""
    target = allocate(arrays[0].dtype)
    start = 0
    for array in arrays:
        copy_rows(array, target, start, path)
        start += len(array)
    return target


def _read_actions(demos: list[_Demo], file: "h5py.File", path: Path, mode: ActionMode) -> NDArray[Any]:
    name = "actions_abs" if mode == "absolute" and "actions_abs" in members(demos[0].group, path) else "actions"
    arrays = [child_array(demo.group, name, path) for demo in demos]
    for demo, array in zip(demos, arrays, strict=True):
        check_numbers(array, path)
        if array.shape != (demo.n_steps, arrays[0].shape[-1]) or array.dtype != arrays[0].dtype:
            raise DataError(
                f"{path}: '{array.name.lstrip('/')}' has shape {list(array.shape)} and dtype {array.dtype}, expected "
                f"{[demo.n_steps, arrays[0].shape[-1]]} and {arrays[0].dtype}, as in the first demonstration."
            )
    actions = _joined(arrays, path, partial(np.empty, (sum(demo.n_steps for demo in demos), arrays[0].shape[-1])))
    where = f"{path}: '{place(demos[0].group, name)}'"
    environment = _environment(file, path)
    if mode != "stored" and environment is not None and environment.takes_poses:
        _check_action_mode(actions, mode, where)
    if mode != "absolute":
        return actions
    try:
        return convert_actions(actions)
    except DataError as error:
        raise DataError(f"{where} cannot be absolute actions. {error}") from error


def _check_action_mode(actions: NDArray[Any], mode: ActionMode, where: str) -> None:
    """Refuse actions of the other mode, which would train without a word and never solve a task.

    robosuite's controllers take delta actions in [-1, 1]. Absolute ones leave that range at once: a gripper that points
    down is half a turn away from none, a rotation vector of length pi.
    """
    normalised = bool(np.abs(actions).max() <= 1 + 1e-6)
    if normalised != (mode == "delta"):
        found = "lie in [-1, 1], so they are delta" if normalised else "leave [-1, 1], so they are absolute"
        other = "delta" if normalised else "absolute"
        raise DataError(
            f"{where} and those of the other demonstrations {found} actions: read them with action_mode='{other}', or "
            f"take a file of {mode} actions."
        )


def _environment(file: "h5py.File", path: Path) -> RobomimicEnvironment | None:
    text = text_attribute(child_group(file, "data", path), "env_args", path, MAX_ENV_ARGS_BYTES)
    return None if text is None else parse_environment(text, f"{path}: attribute 'env_args' of '/data'")
