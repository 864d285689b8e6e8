"""A quick environment: a point that follows its target position, scored by how near it comes to a goal."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ID = "tests.helpers.point_env:test/Point-v0"


class PointEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observation: position and goal (4 numbers). Action: the next position (2). Success within 0.05 of the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-10, 10, (4,), np.float64)
        self.action_space = spaces.Box(0, 1, (2,), np.float32)
        self.render_mode = render_mode
        self._position = self._goal = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._position, self._goal = self.np_random.random(2), self.np_random.random(2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        # Chaotic on purpose: a difference in the last bit of an action grows to another score.
        self._position = self._position + 0.2 * (np.asarray(action, dtype=float) - self._position)
        self._position += 0.05 * np.sin(1e4 * self._position)
        distance = float(np.linalg.norm(self._position - self._goal))
        success = distance < 0.05
        return self._observation(), max(0.0, 1 - distance), success, False, {"is_success": success}

    def render(self) -> np.ndarray:
        frame = np.full((32, 32, 3), 255, np.uint8)
        x, y = np.clip(self._position * 31, 0, 31).astype(int)
        frame[y, x] = 0
        return frame

    def _observation(self) -> np.ndarray:
        return np.concatenate([self._position, self._goal])


gym.register("test/Point-v0", entry_point=PointEnv)
