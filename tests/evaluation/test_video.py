"""Films of rollouts show the episodes that were scored, side by side, each standing still where it ended."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_policy.evaluation import video
from drift_policy.evaluation.rollout import EvaluationConfig, rollout
from drift_policy.evaluation.video import film_rollouts
from tests.helpers.point_env import PointEnv
from tests.helpers.policies import tiny_policy

SIDE = 4


class ShownExactly(PointEnv):
    """Pictures are the bytes of the position; episodes end after 2 to 11 steps. Keeps the pictures of every seed."""

    shown: dict[int, list[np.ndarray]] = {}

    def reset(self, *, seed: int | None = None, **options: Any) -> Any:
        assert seed is not None
        result = super().reset(seed=seed, **options)
        self._pictures = self.shown[seed] = [self.render()]
        self._length = 2 + int(10 * self._goal[0])
        return result

    def step(self, action: np.ndarray) -> Any:
        observation, reward, _, _, info = super().step(action)
        self._pictures.append(self.render())
        return observation, reward, len(self._pictures) > self._length, False, info

    def render(self) -> np.ndarray:
        return np.frombuffer(self._position.tobytes(), np.uint8).reshape(SIDE, SIDE, 1).repeat(3, axis=2)


class Frames:
    """Stands for the writer of a film."""

    def __init__(self, path: Path, fps: int, **settings: Any) -> None:
        self.fps, self.frames = fps, list[np.ndarray]()

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    def append_data(self, frame: np.ndarray) -> None:
        self.frames.append(frame.copy())


def test_films_show_the_scored_episodes_and_hold_their_last_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(observations={"obs": 4})
    config = EvaluationConfig(n_episodes=7, start_seed=20, max_steps=9, n_envs=3, noise_scale=0.5, policy_seed=3)
    monkeypatch.setattr(ShownExactly, "shown", {})
    steps = [episode.steps for episode in rollout(policy, ShownExactly, config).episodes]
    scored = [ShownExactly.shown[seed] for seed in range(20, 25)]
    assert [len(pictures) - 1 for pictures in scored] == steps[:5] and len(set(steps[:5])) > 2

    writers: list[Frames] = []

    def writer(*arguments: Any, **settings: Any) -> Frames:
        writers.append(Frames(*arguments, **settings))
        return writers[-1]

    monkeypatch.setattr(video.imageio, "get_writer", writer)
    film_rollouts(policy, ShownExactly, config, 5, tmp_path / "film.mp4", fps=12)
    (film,) = writers
    assert film.fps == 12 and len(film.frames) > max(steps[:5]) + 1
    for time, frame in enumerate(film.frames):
        assert frame.shape == (2 * SIDE, 4 * SIDE, 3)
        tiles = [tile for row in np.split(frame, 2) for tile in np.split(row, 4, axis=1)]
        for pictures, tile in zip(scored, tiles, strict=False):
            np.testing.assert_array_equal(tile, pictures[min(time, len(pictures) - 1)])
        assert not any(tile.any() for tile in tiles[5:])
