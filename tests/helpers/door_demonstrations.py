"""Small Adroit door demonstrations in the schema of the human ones, recorded in the environment."""

from pathlib import Path
from typing import Any

import numpy as np


def record_door_demonstrations(episodes: int = 3, length: int = 12) -> dict[str, Any]:
    """Record smooth random motions of the arm, a start away from zero and, as in the real file, a stored start at zero.

    Rewards are DAPG's; the last episode begins with the door wide open.
    """
    from envs.adroit import AdroitDoorEnv

    env, rng = AdroitDoorEnv(), np.random.default_rng(0)
    rows: dict[str, list[np.ndarray]] = {"observation": [], "action": [], "reward": []}
    doors = []
    for episode in range(episodes):
        qpos = np.zeros(30)
        qpos[:6] = rng.uniform(-0.1, 0.1, 6)
        qpos[28] = 1.4 if episode == episodes - 1 else 0.0
        doors.append(np.array([-0.25, 0.3, 0.3]) + 0.2 * (episode == 0))
        observation, _ = env.reset(options={"qpos": qpos, "qvel": np.zeros(30), "door_body_pos": doors[-1]})
        targets = rng.uniform(-1.2, 1.2, (2, 28))
        for share in np.linspace(0, 1, length):
            action = ((1 - share) * targets[0] + share * targets[1]).astype(np.float32)
            rows["observation"].append(observation.astype(np.float32))
            rows["action"].append(action)
            observation = env.step(action)[0]
            rows["reward"].append(np.float32(_reward(observation, env.data.qvel)))
    return {
        **{name: np.stack(values) for name, values in rows.items()},
        "episode_ends": length * np.arange(1, episodes + 1),
        "init_qpos": np.zeros((episodes, 30)),
        "init_qvel": np.zeros((episodes, 30)),
        "init_door_body_pos": np.stack(doors),
    }


def write_door_demonstrations(path: Path, **sizes: int) -> Path:
    """Write small demonstrations as one .npz archive."""
    np.savez_compressed(path, **record_door_demonstrations(**sizes))
    return path


def _reward(observation: np.ndarray, qvel: np.ndarray) -> float:
    angle = observation[28]
    reward = -0.1 * np.linalg.norm(observation[35:38]) - 0.1 * (angle - 1.57) ** 2 - 1e-5 * np.sum(qvel**2)
    return float(reward + 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35))
