"""The formats that demonstrations come in: how each is read, counted, and asked about the environment."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drift_policy.data.readers.kitchen_mjl import count_kitchen_mjl, read_kitchen_mjl
from drift_policy.data.readers.kitchen_numpy import count_kitchen_numpy, read_kitchen_numpy
from drift_policy.data.readers.lerobot import count_lerobot, lerobot_names, lerobot_rate, read_lerobot
from drift_policy.data.readers.minari import count_minari, read_minari
from drift_policy.data.readers.npz import count_npz, read_npz
from drift_policy.data.readers.robomimic import count_robomimic, describe_robomimic, read_robomimic
from drift_policy.data.readers.zarr import count_zarr, read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import DataError

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class DataFormat:
    """One format of demonstrations."""

    read: Callable[..., ReplayBuffer]  # read(path, columns, **options); DataError if that is not possible
    count: Callable[..., tuple[int, int]]  # count(path, **options): (episodes, steps) of a file or folder
    options: tuple[str, ...] = ()  # keyword arguments of `read` that task.dataset.options may give
    count_options: tuple[str, ...] = ()  # those of them that `count` takes too
    memory_map: bool = False  # whether `read` takes memory_map=True
    container: str | None = None  # what `container_of` calls its files or folders; None is anything else
    # What a file, read with these options, says about the environment it was recorded in, as keyword arguments (see
    # task.EnvConfig.from_data).
    environment: Callable[[Path, Mapping[str, Any]], dict[str, Any]] | None = None
    # What the action numbers mean when read with these options, None if that is not known; task.action_space must say
    # the same.
    action_space: Callable[[Mapping[str, Any]], str | None] | None = None
    names: Callable[[Path], dict[str, list[str]]] | None = None  # column -> names of its numbers, if known
    control_hz: Callable[[Path], float] | None = None  # steps a second that a file or folder was recorded at


def container_of(path: Path) -> str | None:
    """Return what a file or folder of demonstrations is, as far as that shows: "HDF5", "zarr" or "LeRobot"."""
    if path.is_file():
        try:
            with path.open("rb") as file:
                return "HDF5" if file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE else None
        except OSError:
            return None  # its reader says what is wrong with it
    if (path / "meta" / "info.json").is_file():
        return "LeRobot"
    return "zarr" if any((path / name).is_file() for name in (".zgroup", "zarr.json")) else None


def check_format(path: Path, name: str) -> None:
    """Require that a file or folder is not plainly of another format than `task.dataset.format` says.

    Args:
        path: demonstrations.
        name: a key of `FORMATS`.

    Raises:
        DataError: it is of another one.
    """
    found = container_of(path)
    if found is None or found == FORMATS[name].container:
        return
    fitting = [other for other, data_format in FORMATS.items() if data_format.container == found]
    raise DataError(
        f"{path} is {found}, but task.dataset.format is {name}: set it to {' or '.join(fitting)}, and the columns and "
        "options that go with it (docs/your_own_data.md), or give other demonstrations with data_path=... ."
    )


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
        container="zarr",
    ),
    "npz": DataFormat(read_npz, count_npz),
    "lerobot": DataFormat(
        read_lerobot,
        count_lerobot,
        options=("image_size", "episodes"),
        memory_map=True,
        container="LeRobot",
        names=lerobot_names,
        control_hz=lerobot_rate,
    ),
    "robomimic": DataFormat(
        read_robomimic,
        count_robomimic,
        options=("action_mode", "filter_key"),
        memory_map=True,
        container="HDF5",
        environment=_robomimic_environment,
        action_space=_robomimic_action_space,
    ),
    "minari": DataFormat(read_minari, count_minari, container="HDF5"),
    "kitchen_numpy": DataFormat(read_kitchen_numpy, count_kitchen_numpy),
    "kitchen_mjl": DataFormat(read_kitchen_mjl, count_kitchen_mjl, options=("robot_noise_ratio",)),
}
