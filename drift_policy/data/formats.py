"""The formats that demonstrations come in: how each is read, counted, and asked about the environment."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drift_policy.data.readers.kitchen_mjl import count_kitchen_mjl, read_kitchen_mjl
from drift_policy.data.readers.kitchen_numpy import count_kitchen_numpy, read_kitchen_numpy
from drift_policy.data.readers.lerobot import count_lerobot, lerobot_rate, read_lerobot
from drift_policy.data.readers.minari import count_minari, read_minari
from drift_policy.data.readers.npz import count_npz, read_npz
from drift_policy.data.readers.robomimic import count_robomimic, describe_robomimic, read_robomimic
from drift_policy.data.readers.zarr import count_zarr, read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer


@dataclass(frozen=True)
class DataFormat:
    """One format of demonstrations."""

    read: Callable[..., ReplayBuffer]  # read(path, columns, **options); DataError if that is not possible
    count: Callable[..., tuple[int, int]]  # count(path, **options): (episodes, steps) of a file or folder
    options: tuple[str, ...] = ()  # keyword arguments of `read` that task.dataset.options may give
    count_options: tuple[str, ...] = ()  # those of them that `count` takes too
    memory_map: bool = False  # whether `read` takes memory_map=True
    # What a file, read with these options, says about the environment it was recorded in, as keyword arguments (see
    # task.EnvConfig.from_data).
    environment: Callable[[Path, Mapping[str, Any]], dict[str, Any]] | None = None
    # What the action numbers mean when read with these options, None if that is not known; task.action_space must say
    # the same.
    action_space: Callable[[Mapping[str, Any]], str | None] | None = None
    control_hz: Callable[[Path], float] | None = None  # steps a second that a file or folder was recorded at


def _robomimic_environment(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    environment = asdict(describe_robomimic(path).environment)
    return {"env_args": environment, "action_mode": _robomimic_action_mode(options)}


def _robomimic_action_mode(options: Mapping[str, Any]) -> str:
    mode: str = options.get("action_mode", "delta")
    return mode


def _robomimic_action_space(options: Mapping[str, Any]) -> str | None:
    mode = _robomimic_action_mode(options)
    return None if mode == "stored" else mode


FORMATS: dict[str, DataFormat] = {
    "zarr": DataFormat(
        read_zarr,
        count_zarr,
        options=("allow_missing_chunks",),
        count_options=("allow_missing_chunks",),
        memory_map=True,
    ),
    "npz": DataFormat(read_npz, count_npz),
    "lerobot": DataFormat(
        read_lerobot, count_lerobot, options=("image_size",), memory_map=True, control_hz=lerobot_rate
    ),
    "robomimic": DataFormat(
        read_robomimic,
        count_robomimic,
        options=("action_mode", "filter_key"),
        memory_map=True,
        environment=_robomimic_environment,
        action_space=_robomimic_action_space,
    ),
    "minari": DataFormat(read_minari, count_minari),
    "kitchen_numpy": DataFormat(read_kitchen_numpy, count_kitchen_numpy),
    "kitchen_mjl": DataFormat(read_kitchen_mjl, count_kitchen_mjl, options=("robot_noise_ratio",)),
}
