"""The formats that demonstrations come in: how each is read, counted, and asked about the environment."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drift_policy.data.readers.lerobot import count_lerobot, read_lerobot
from drift_policy.data.readers.npz import count_npz, read_npz
from drift_policy.data.readers.robomimic import count_robomimic, describe_robomimic, read_robomimic
from drift_policy.data.readers.zarr import count_zarr, read_zarr
from drift_policy.data.replay_buffer import ReplayBuffer


@dataclass(frozen=True)
class DataFormat:
    """One format of demonstrations."""

    read: Callable[..., ReplayBuffer]  # read(path, columns, **options); DataError if that is not possible
    count: Callable[[Path], tuple[int, int]]  # (episodes, steps) of a file or folder
    options: tuple[str, ...] = ()  # keyword arguments of `read` that task.dataset.options may give
    memory_map: bool = False  # whether `read` takes memory_map=True
    # What a file says about the environment it was recorded in, as keyword arguments (see task.EnvConfig.from_data).
    environment: Callable[[Path], dict[str, Any]] | None = None


def _robomimic_environment(path: Path) -> dict[str, Any]:
    return {"env_args": asdict(describe_robomimic(path).environment)}


FORMATS: dict[str, DataFormat] = {
    "zarr": DataFormat(read_zarr, count_zarr, memory_map=True),
    "npz": DataFormat(read_npz, count_npz),
    "lerobot": DataFormat(read_lerobot, count_lerobot, options=("image_size",), memory_map=True),
    "robomimic": DataFormat(
        read_robomimic,
        count_robomimic,
        options=("action_mode", "filter_key"),
        memory_map=True,
        environment=_robomimic_environment,
    ),
}
