"""Demonstrations and a task for `PointImageEnv`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.data.zarr_writer import write_zarr
from drift_policy.encoders.backbones import BackboneKind
from drift_policy.task import ColumnConfig, DatasetConfig, EnvConfig, ObservationConfig, TaskConfig
from drift_policy.training.config import TrainConfig
from tests.helpers.image_env import ID, draw_scene
from tests.helpers.point_task import point_training

SMALL_CNN: dict[str, Any] = {
    "name": "small_cnn",
    "channels": [16],
    "kernel_sizes": [3],
    "strides": [2],
    "num_keypoints": 4,
    "feature_size": 8,
}


@dataclass
class BatchNormConfig:
    """Nothing to choose."""


def _batch_norm(config: BatchNormConfig, channels: int, height: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


BATCH_NORM = BackboneKind(BatchNormConfig, _batch_norm)  # a backbone whose buffers change in training


def image_demonstrations(episodes: int = 6, length: int = 12) -> ReplayBuffer:
    """Straight walks to the goal, seen by the camera: images [N, 16, 16, 3] uint8."""
    rng = np.random.default_rng(0)
    images, positions, actions = [], [], []
    for _ in range(episodes):
        start, goal = rng.random(2), rng.random(2)
        path = start + np.linspace(0, 1, length + 1)[:, None] * (goal - start)
        images += [draw_scene(position, goal) for position in path[:-1]]
        positions.append(path[:-1])
        actions.append(path[1:])
    data = {
        "img": np.stack(images),
        "state": np.concatenate(positions).astype(np.float32),
        "action": np.concatenate(actions).astype(np.float32),
    }
    return ReplayBuffer(data, np.arange(1, episodes + 1) * length)


def image_task(memory_map: bool = False) -> TaskConfig:
    """The task as a configuration file would describe it."""
    return TaskConfig(
        name="point_image",
        dataset=DatasetConfig(name="point_image", relative_path="point_image.zarr", memory_map=memory_map),
        observations={
            "image": ObservationConfig(columns=[ColumnConfig("img")], kind="image", crop=[13, 14]),
            "position": ObservationConfig(columns=[ColumnConfig("state")]),
        },
        action=[ColumnConfig("action")],
        env=EnvConfig(id=ID),
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
    )


def image_training(folder: Path, *, memory_map: bool = False, backbone: Any = None, **changes: Any) -> TrainConfig:
    """A training run of a few steps below `folder`; `changes` are those of `point_training`."""
    data = folder / "point_image.zarr"
    if not data.exists():
        write_zarr(data, image_demonstrations())
    policy = {
        "head": {"name": "drift", "samples_per_observation": 3},
        "network": {"name": "mlp", "width": 16, "depth": 1},
        "image_backbone": backbone or SMALL_CNN,
    }
    return point_training(folder, task=image_task(memory_map), data_path=str(data), policy=policy, **changes)
