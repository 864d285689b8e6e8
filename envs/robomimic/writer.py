"""Writing demonstrations in robomimic's HDF5 format, which drift_policy/data/readers/robomimic.py reads."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drift_policy.data.readers.hdf5 import import_h5py
from envs.robomimic.episode import Episode

if TYPE_CHECKING:
    import h5py

VALID_SHARE = 0.1  # of the demonstrations are listed in mask/valid, the others in mask/train
IMAGES_PER_CHUNK = 16  # compressed together


class RobomimicWriter:
    """Appends demonstrations to an open file; made by `robomimic_writer`.

    Written are `data/demo_<i>/{actions, actions_abs, states, rewards, dones, obs/<key>}` with the attributes
    `num_samples` and `model_file`. robomimic's `next_obs` is left out: no reader of this project uses it, and it would
    double the file.
    """

    def __init__(self, file: "h5py.File", environment: dict[str, Any]) -> None:
        self._file = file
        self._data = file.create_group("data")
        self._data.attrs["env_args"] = json.dumps(environment, indent=4)
        self.lengths: list[int] = []  # steps of every demonstration

    def add(self, episode: Episode) -> None:
        """Append a demonstration."""
        group = self._data.create_group(f"demo_{len(self.lengths)}")
        for name in ("actions", "actions_abs", "states", "rewards", "dones"):
            group.create_dataset(name, data=getattr(episode, name))
        for key, values in episode.observations.items():
            _create(group, f"obs/{key}", values)
        group.attrs["num_samples"] = len(episode.actions)
        group.attrs["model_file"] = episode.model
        self.lengths.append(len(episode.actions))

    def finish(self, attributes: dict[str, str], rng: np.random.Generator) -> None:
        """Write the total, the masks and further attributes of `data`.

        Args:
            attributes: name -> text.
            rng: draws which demonstrations are for validation.
        """
        self._data.attrs["total"] = sum(self.lengths)
        for name, text in attributes.items():
            self._data.attrs[name] = text
        valid = set(rng.choice(len(self.lengths), round(VALID_SHARE * len(self.lengths)), replace=False).tolist())
        for mask, wanted in (("train", False), ("valid", True)):
            names = [f"demo_{i}" for i in range(len(self.lengths)) if (i in valid) is wanted]
            if names:  # a reader takes an empty list for a damaged one
                self._file.create_dataset(f"mask/{mask}", data=np.array(names, dtype="S"))


@contextmanager
def robomimic_writer(path: Path, environment: dict[str, Any]) -> Iterator[RobomimicWriter]:
    """Write a file that appears when it is complete, and not at all after an error.

    Args:
        path: the file.
        environment: what becomes of the attribute `env_args`.

    Raises:
        ConfigurationError: h5py is not installed.
    """
    h5py = import_h5py()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, mode="w") as file:
            yield RobomimicWriter(file, environment)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _create(group: "h5py.Group", name: str, values: NDArray[Any]) -> None:
    if values.dtype == np.uint8 and values.ndim == 4:
        chunks = (min(len(values), IMAGES_PER_CHUNK), *values.shape[1:])
        group.create_dataset(name, data=values, chunks=chunks, compression="gzip", compression_opts=1)
    else:
        group.create_dataset(name, data=values)
