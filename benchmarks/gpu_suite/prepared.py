"""Prepared demonstrations: one .npz file a task, written by `prepare`, read with NumPy alone."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_suite.schedulers import DiffusionTable
from drift_policy.data.normalizer import Normalizer
from drift_policy.data.window_batches import WindowBatches
from drift_policy.encoders import ObservationSpec
from drift_policy.errors import DataError
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.policy_config import ACTION

TASKS = ("state", "image")
_FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """Demonstrations of a task as a policy trains on them."""

    metadata: dict[str, Any]  # facts that travel with every policy: task, data set
    specs: dict[str, ObservationSpec]  # what an observation consists of
    observations: dict[str, NDArray[Any]]  # key -> numbers [N, D] float32, or images [N, H, W, C] uint8
    action: NDArray[np.float32]  # [N, Da]
    rows: NDArray[np.int32]  # the steps of each training window, [W, Tp]
    n_obs_steps: int  # To
    n_action_steps: int  # Ta
    ranges: dict[str, NDArray[np.float32]]  # key of numbers, or "action" -> smallest and largest values, [2, D]
    tables: dict[str, DiffusionTable]  # diffusion samplers by name

    @property
    def horizon(self) -> int:
        """Tp."""
        return self.rows.shape[1]

    @property
    def has_images(self) -> bool:
        """Whether an observation has a camera."""
        return any(spec.kind == "image" for spec in self.specs.values())

    def windows(self, device: torch.device) -> WindowBatches:
        """Return the training windows, all data on the device."""
        observations = {key: torch.from_numpy(value) for key, value in self.observations.items()}
        rows = torch.from_numpy(self.rows.astype(np.int64))
        return WindowBatches(observations, torch.from_numpy(self.action), rows, self.n_obs_steps).to(device)

    def normalizer(self) -> Normalizer:
        """Return the normaliser of the demonstrations: it depends on their ranges alone."""
        return Normalizer.fit(self.ranges)


def prepared_path(folder: Path, task: str) -> Path:
    """Return where the demonstrations of a task of `TASKS` are."""
    return folder / f"pusht_{task}.npz"


def write_prepared(path: Path, prepared: Prepared) -> None:
    """Write the file and the folder it is in.

    Successive frames of a simulation hardly differ, so the file's own compression is enough for images.
    """
    facts = {
        "format": _FORMAT,
        "metadata": prepared.metadata,
        "specs": {key: asdict(spec) for key, spec in prepared.specs.items()},
        "n_obs_steps": prepared.n_obs_steps,
        "n_action_steps": prepared.n_action_steps,
        "tables": {name: asdict(table.config) for name, table in prepared.tables.items()},
    }
    arrays: dict[str, NDArray[Any]] = {"facts": np.array(json.dumps(facts)), ACTION: prepared.action}
    arrays["rows"] = prepared.rows
    arrays |= {f"observation.{key}": value for key, value in prepared.observations.items()}
    arrays |= {f"range.{key}": value for key, value in prepared.ranges.items()}
    for name, table in prepared.tables.items():
        arrays |= {f"alphas.{name}": table.alphas, f"steps.{name}": table.steps}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stub takes keywords for flags


def read_prepared(path: Path) -> Prepared:
    """Read a file of `write_prepared`.

    Raises:
        DataError: it is missing, damaged, or of another version of this suite.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: run python -m benchmarks.gpu_suite.prepare and bring its folder along.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(str(arrays["facts"]))
        if facts["format"] != _FORMAT:
            raise DataError(f"{path} has format {facts['format']}, but this suite reads {_FORMAT}: prepare it again.")
        return _from_arrays(arrays, facts)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}): prepare it again.") from error


def _from_arrays(arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> Prepared:
    tables = {
        name: DiffusionTable(DiffusionHeadConfig(**config), arrays[f"alphas.{name}"], arrays[f"steps.{name}"])
        for name, config in facts["tables"].items()
    }
    ranges = [name.removeprefix("range.") for name in arrays if name.startswith("range.")]
    return Prepared(
        metadata=facts["metadata"],
        specs={key: ObservationSpec(**spec) for key, spec in facts["specs"].items()},
        observations={key: arrays[f"observation.{key}"] for key in facts["specs"]},
        action=arrays[ACTION],
        rows=arrays["rows"],
        n_obs_steps=facts["n_obs_steps"],
        n_action_steps=facts["n_action_steps"],
        ranges={key: arrays[f"range.{key}"] for key in ranges},
        tables=tables,
    )
