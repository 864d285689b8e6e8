"""Films of rollouts."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import torch
from einops import rearrange

from drift_policy.evaluation.rollout import MakeEnv
from drift_policy.policy import Policy

_COLUMNS = 4
# Frames that an ended episode stands still, so that its last state can be seen.
_HOLD_FRAMES = 10


def film_rollouts(
    policy: Policy,
    make_env: MakeEnv,
    seeds: Sequence[int],
    path: Path,
    *,
    max_steps: int,
    fps: int = 10,
) -> list[float]:
    """Write an mp4 that shows the episodes of `seeds` side by side and return their highest rewards.

    Args:
        policy: in evaluation mode.
        make_env: makes an environment with render_mode "rgb_array".
        seeds: one episode each.
        path: the file, ending in .mp4.
        max_steps: length limit of an episode.
        fps: environment steps that one second of film shows.
    """
    films, scores = [], []
    for seed in seeds:
        frames, score = _film_episode(policy, make_env(), seed, max_steps)
        films.append(frames)
        scores.append(score)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.mimwrite(path, list(_tile(films)), fps=fps, macro_block_size=2, quality=7)
    return scores


def _film_episode(policy: Policy, env: gym.Env[Any, Any], seed: int, max_steps: int) -> tuple[list[np.ndarray], float]:
    observation, _ = env.reset(seed=seed)
    policy.reset()
    frames = [np.asarray(env.render())]
    score = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(max_steps):
            action = policy.select_action(observation).cpu().numpy()
            observation, reward, terminated, truncated, _ = env.step(action)
            frames.append(np.asarray(env.render()))
            score = max(score, float(reward))
            if terminated or truncated:
                break
    policy.reset()
    env.close()
    return frames, score


def _tile(films: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange films [time, H, W, 3] of different lengths in a grid, [time, rows * H, columns * W, 3]."""
    length = max(len(film) for film in films) + _HOLD_FRAMES
    held = np.stack([np.stack(film + [film[-1]] * (length - len(film))) for film in films])
    columns = min(_COLUMNS, len(films))
    rows = ceil(len(films) / columns)
    grid = np.zeros((rows * columns, *held.shape[1:]), dtype=held.dtype)
    grid[: len(films)] = held
    return rearrange(grid, "(r c) t h w d -> t (r h) (c w) d", r=rows)
