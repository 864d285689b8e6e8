"""A quick environment with a camera: a point that follows its target position, and a goal that only the image shows."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ID = "tests.helpers.image_env:test/PointImage-v0"
SIZE = 16  # pixels of a side


def draw_scene(position: NDArray[Any], goal: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the camera's image [SIZE, SIZE, 3]: the point's pixel is red and the goal's green, on grey."""
    image = np.full((SIZE, SIZE, 3), 60, np.uint8)
    for channel, place in enumerate((position, goal)):
        x, y = np.clip(np.asarray(place) * SIZE, 0, SIZE - 1).astype(int)
        image[y, x, channel] = 255
    return image


class PointImageEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Observation: image and position (2 numbers). Action: the next position (2). Success within 0.05 of the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 1, (3, SIZE, SIZE), np.float32),
                "position": spaces.Box(-10, 10, (2,), np.float64),
            }
        )
        self.action_space = spaces.Box(0, 1, (2,), np.float32)
        self.render_mode = render_mode
        self._position = self._goal = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self._position, self._goal = self.np_random.random(2), self.np_random.random(2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._position = self._position + 0.2 * (np.asarray(action, dtype=float) - self._position)
        distance = float(np.linalg.norm(self._position - self._goal))
        success = distance < 0.05
        return self._observation(), max(0.0, 1 - distance), success, False, {"is_success": success}

    def render(self) -> np.ndarray:
        return draw_scene(self._position, self._goal)

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.moveaxis(draw_scene(self._position, self._goal), -1, 0).astype(np.float32) / 255
        return {"image": image, "position": self._position}


gym.register("test/PointImage-v0", entry_point=PointImageEnv)
