"""A Gymnasium wrapper that executes whole action chunks and stacks the last observations."""

from collections import deque
from math import inf
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from drift_policy.errors import ConfigurationError

SINGLE_KEY = "obs"


class ChunkedEpisode(gym.Wrapper[Any, Any, Any, Any]):
    """Turn an environment into one that takes chunks [Ta, Da] and shows the last To observations.

    `info` says after every chunk: "score" (highest reward of the episode so far, Diffusion Policy's metric),
    "success" (whether the environment's "is_success" was true at any step), "success_reported" (whether it said
    "is_success" at all), "completed" (the highest "n_completed" that the environment reported, 0 if it reports none),
    "steps" and "episode_over".
    An ended episode ignores further chunks until `reset`, and never reports termination by itself: a slot of a
    vector environment that has nothing left to do then costs nothing.

    Args:
        env: an environment whose observation is a Box (its key becomes "obs") or a Dict of Boxes.
        n_obs_steps: observation steps, To; the first observation of an episode is repeated to fill them.
        n_action_steps: steps of a chunk, Ta.
        max_steps: length limit of an episode, in environment steps.

    Raises:
        ConfigurationError: an observation or the action is no Box.
    """

    def __init__(self, env: gym.Env[Any, np.ndarray], n_obs_steps: int, n_action_steps: int, max_steps: int) -> None:
        super().__init__(env)
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=n_obs_steps)
        self._max_steps = max_steps
        self._score, self._success, self._reported = -inf, False, False
        self._completed, self._steps, self._over = 0, 0, True

        single: spaces.Space[Any] = env.observation_space
        boxes: dict[str, spaces.Space[Any]] = {SINGLE_KEY: single}
        if isinstance(single, spaces.Dict):
            boxes = dict(single.spaces)
        self.observation_space = spaces.Dict(
            {key: _stack_box(f"observation {key!r}", box, n_obs_steps) for key, box in boxes.items()}
        )
        self.action_space = _stack_box("action", env.action_space, n_action_steps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode and return its first observation, To times."""
        observation, _ = self.env.reset(seed=seed, options=options)
        self._history.extend([self._as_mapping(observation)] * (self._history.maxlen or 1))
        self._score, self._success, self._reported = -inf, False, False
        self._completed, self._steps, self._over = 0, 0, False
        return self._stacked(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute the steps of a chunk until it or the episode ends; the reward is the episode's score so far."""
        for single_action in action:
            if self._over:
                break
            observation, reward, terminated, truncated, info = self.env.step(single_action)
            self._history.append(self._as_mapping(observation))
            self._steps += 1
            self._score = max(self._score, float(reward))
            self._reported = self._reported or "is_success" in info
            self._success = self._success or bool(info.get("is_success", False))
            self._completed = max(self._completed, int(info.get("n_completed", 0)))
            self._over = terminated or truncated or self._steps >= self._max_steps
        return self._stacked(), self._score, False, False, self._info()

    def _as_mapping(self, observation: Any) -> dict[str, np.ndarray]:
        return observation if isinstance(observation, dict) else {SINGLE_KEY: observation}

    def _stacked(self) -> dict[str, np.ndarray]:
        return {key: np.stack([step[key] for step in self._history]) for key in self._history[0]}

    def _info(self) -> dict[str, Any]:
        return {
            "score": self._score,
            "success": self._success,
            "success_reported": self._reported,
            "completed": self._completed,
            "steps": self._steps,
            "episode_over": self._over,
        }


def _stack_box(what: str, box: spaces.Space[Any], steps: int) -> spaces.Box:
    if not isinstance(box, spaces.Box):
        raise ConfigurationError(
            f"The {what} of the environment is a {type(box).__name__}, but policies observe and command numbers and "
            "images: its space must be a Box. Wrap the environment, or take another."
        )
    return spaces.Box(
        low=np.repeat(box.low[None], steps, axis=0),
        high=np.repeat(box.high[None], steps, axis=0),
        dtype=box.dtype.type,
    )
