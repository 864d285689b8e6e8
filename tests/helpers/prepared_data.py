"""Prepared demonstrations for the GPU suite: walks of a point, seen as numbers or by a camera."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_suite.prepare import SAMPLERS, export_table
from benchmarks.gpu_suite.prepared import Prepared, prepared_path, write_prepared
from drift_policy.encoders import ObservationSpec

STEPS, HORIZON = 60, 16


def prepared_demonstrations(task: str) -> Prepared:
    """Return demonstrations with the observations of Push-T ("state": 20 numbers) or a small camera ("image")."""
    rng = np.random.default_rng(0)
    numbers = rng.uniform(0, 512, (STEPS, 20)).astype(np.float32)
    action = rng.uniform(0, 512, (STEPS, 2)).astype(np.float32)
    specs = {"obs": ObservationSpec(shape=[20])}
    observations: dict[str, Any] = {"obs": numbers}
    if task == "image":
        specs = {
            "image": ObservationSpec(kind="image", shape=[3, 24, 24], crop=[20, 20]),
            "agent_pos": ObservationSpec(shape=[2]),
        }
        observations = {
            "image": rng.integers(256, size=(STEPS, 24, 24, 3), dtype=np.uint8),
            "agent_pos": numbers[:, :2],
        }
    values = {key: value for key, value in observations.items() if key != "image"} | {"action": action}
    starts = np.arange(STEPS - HORIZON, dtype=np.int32)
    return Prepared(
        metadata={"task": "pusht" if task == "state" else "pusht_image", "score_name": "coverage"},
        specs=specs,
        observations=observations,
        action=action,
        rows=starts[:, None] + np.arange(HORIZON, dtype=np.int32),
        n_obs_steps=2,
        n_action_steps=8,
        ranges={key: np.stack([value.min(axis=0), value.max(axis=0)]) for key, value in values.items()},
        tables={name: export_table(sampler) for name, sampler in SAMPLERS.items()},
    )


def write_demonstrations(folder: Path) -> Path:
    """Write both tasks as `prepare` does and return the folder."""
    for task in ("state", "image"):
        write_prepared(prepared_path(folder, task), prepared_demonstrations(task))
    return folder
