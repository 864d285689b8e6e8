"""Demonstrations and a task for `PointEnv`."""

from pathlib import Path
from typing import Any

import numpy as np

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.task import ColumnConfig, DatasetConfig, EnvConfig, ObservationConfig, TaskConfig
from drift_policy.training.config import RolloutConfig, TrainConfig, TrainerConfig
from tests.helpers.point_env import ID


def point_demonstrations(episodes: int = 12, length: int = 20, seed: int = 0) -> ReplayBuffer:
    """Straight walks to the goal."""
    rng = np.random.default_rng(seed)
    observations, actions = [], []
    for _ in range(episodes):
        start, goal = rng.random(2), rng.random(2)
        path = start + np.linspace(0, 1, length + 1)[:, None] * (goal - start)
        observations.append(np.concatenate([path[:-1], np.broadcast_to(goal, (length, 2))], axis=1))
        actions.append(path[1:])
    data = {
        "observation": np.concatenate(observations).astype(np.float32),
        "action": np.concatenate(actions).astype(np.float32),
    }
    return ReplayBuffer(data, np.arange(1, episodes + 1) * length)


def point_task() -> TaskConfig:
    """The task as a configuration file would describe it."""
    return TaskConfig(
        name="point",
        dataset=DatasetConfig(name="point", relative_path="point.zarr"),
        observations={"obs": ObservationConfig(columns=[ColumnConfig("observation")])},
        action=[ColumnConfig("action")],
        env=EnvConfig(id=ID),
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
    )


def point_training(folder: Path, **changes: Any) -> TrainConfig:
    """A training run of a few steps below `folder`; `changes` are fields of TrainConfig or, as trainer=..., its own."""
    data = folder / "point.zarr"
    if not data.exists():
        write_zarr(data, point_demonstrations())
    trainer = {
        "num_steps": 20,
        "batch_size": 16,
        "warmup_steps": 2,
        "log_every": 5,
        "validate_every": 10,
        "rollout_every": 5,
        "checkpoint_every": 5,
        "keep_best": 2,
        "validation_windows": 16,
        "val_ratio": 0.1,
        **changes.pop("trainer", {}),
    }
    values: dict[str, Any] = {
        "task": point_task(),
        "policy": {
            "noise_scale": 0.5,
            "head": {"name": "drift", "samples_per_observation": 4},
            "network": {"name": "mlp", "width": 16, "depth": 1},
        },
        "name": "test",
        "trainer": TrainerConfig(**trainer),
        "rollout": RolloutConfig(n_episodes=3, start_seed=500, max_steps=12),
        "evaluation": EvaluationConfig(n_episodes=4, max_steps=12),
        "output": str(folder / "runs"),
        "data_path": str(data),
        "device": "cpu",
        "video_episodes": 0,
        **changes,
    }
    return TrainConfig(**values)
