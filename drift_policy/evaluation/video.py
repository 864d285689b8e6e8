"""Films of rollouts."""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from drift_policy.evaluation.rollout import EvaluationConfig, MakeEnv, rollout
from drift_policy.policy import Policy

_COLUMNS = 4
# Frames that an ended episode stands still, so that its last state can be seen.
_HOLD_FRAMES = 10
Film = list[NDArray[np.uint8]]  # frames [H, W, 3]


class _FrameRecorder(gym.Wrapper[Any, Any, Any, Any]):
    """Appends one film an episode to `films`."""

    def __init__(self, env: gym.Env[Any, Any], films: list[Film]) -> None:
        super().__init__(env)
        self._films = films

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        self._films.append([np.asarray(self.env.render())])
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._films[-1].append(np.asarray(self.env.render()))
        return result


def film_rollouts(
    policy: Policy, make_env: MakeEnv, config: EvaluationConfig, episodes: int, path: Path, fps: int
) -> None:
    """Write an mp4 that shows the first episodes of an evaluation side by side, exactly as they were scored.

    Args:
        policy: in evaluation mode.
        make_env: makes an environment with render_mode "rgb_array".
        config: the evaluation.
        episodes: how many of its episodes to film.
        path: the file, ending in .mp4.
        fps: environment steps that one second of film shows.
    """
    films: list[Film] = []
    one_by_one = replace(config, n_episodes=episodes, n_envs=1, asynchronous=False, decision_batch_size=1)
    rollout(policy, lambda: _FrameRecorder(make_env(), films), one_by_one)
    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(path, fps=fps, macro_block_size=2, quality=7) as writer:
        for frame in _tiled_frames(films):
            writer.append_data(frame)  # type: ignore[attr-defined]  # missing in the stubs of imageio


def _tiled_frames(films: list[Film]) -> Iterator[NDArray[np.uint8]]:
    """Arrange films of different lengths in a grid, frame by frame: [rows * H, columns * W, 3]."""
    columns = min(_COLUMNS, len(films))
    height, width, channels = films[0][0].shape
    grid = np.zeros((ceil(len(films) / columns) * height, columns * width, channels), dtype=np.uint8)
    for time in range(max(len(film) for film in films) + _HOLD_FRAMES):
        for index, film in enumerate(films):
            row, column = divmod(index, columns)
            tile = grid[row * height : (row + 1) * height, column * width : (column + 1) * width]
            tile[:] = film[min(time, len(film) - 1)]
        yield grid
