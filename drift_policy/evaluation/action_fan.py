"""The action fan: many chunks that a policy draws from one observation."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")  # no screen needed; before pyplot is imported
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.evaluation.rollout import MakeEnv
from drift_policy.policy import Policy

_SAMPLES = 64
_MOMENTS = 4


def picture_action_fan(policy: Policy, make_env: MakeEnv, seed: int, path: Path, max_steps: int) -> None:
    """Draw the policy's samples at several moments of one episode.

    Two-dimensional actions that are positions are drawn over the rendered scene; any other action as curves over
    the steps of the chunk, one panel row a dimension being too many, so the first two dimensions are shown.

    Args:
        policy: in evaluation mode.
        make_env: makes an environment with render_mode "rgb_array".
        seed: of the episode.
        path: the PNG to write.
        max_steps: length limit of the episode.
    """
    env = ChunkedEpisode(make_env(), policy.n_obs_steps, policy.n_action_steps, max_steps)
    moments = _play(policy, env, seed)
    env.close()
    figure, axes = plt.subplots(1, len(moments), figsize=(4.2 * len(moments), 4.6), squeeze=False, layout="constrained")
    for axis, (frame, samples, step) in zip(axes.flat, moments, strict=True):
        _draw(axis, frame, samples, policy.n_obs_steps - 1, _scene_size(env))
        axis.set_title(f"step {step}")
    figure.suptitle(
        f"{_SAMPLES} samples from one observation, noise as in training, {policy.num_evaluations} evaluation(s) each"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


Moment = tuple[NDArray[Any], NDArray[Any], int]


def _play(policy: Policy, env: ChunkedEpisode, seed: int) -> list[Moment]:
    """Return rendered frame, samples [G, Tp, Da] and step at evenly spaced decisions of an episode."""
    generator = torch.Generator().manual_seed(seed)
    observation, info = env.reset(seed=seed)
    moments: list[Moment] = []
    while not info["episode_over"]:
        batch = {key: observation[key][None] for key in policy.config.observations}
        samples = policy.sample_actions(batch, _SAMPLES, generator=generator, noise_scale=1.0)[0]
        moments.append((np.asarray(env.render()), samples.cpu().numpy(), int(info["steps"])))
        chunk = policy.predict_action(batch, generator=generator)["action"][0]
        observation, _, _, _, info = env.step(chunk.cpu().numpy())
    chosen = np.unique(np.linspace(0, len(moments) - 1, _MOMENTS).round().astype(int))
    return [moments[index] for index in chosen]


def _scene_size(env: gym.Env[Any, Any]) -> float | None:
    """Return the side of a square scene whose coordinates the actions are, or None."""
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or space.shape[-1] != 2:
        return None
    low, high = space.low[0], space.high[0]
    return float(high[0]) if (low == 0).all() and (high == high[0]).all() else None


def _draw(axis: Axes, frame: NDArray[Any], samples: NDArray[Any], now: int, scene: float | None) -> None:
    colours = plt.get_cmap("viridis")(np.linspace(0, 1, len(samples)))
    if scene is None:
        for sample, colour in zip(samples, colours, strict=True):
            axis.plot(sample[:, :2], color=colour, alpha=0.5, linewidth=0.8)
        axis.axvline(now, color="black", linewidth=0.8)
        axis.set_xlabel("step of the chunk")
        axis.set_ylabel("first two numbers of the action")
        return
    axis.imshow(frame, extent=(0, scene, scene, 0), alpha=0.75)
    for sample, colour in zip(samples, colours, strict=True):
        axis.plot(sample[now:, 0], sample[now:, 1], color=colour, alpha=0.6, linewidth=0.9)
        axis.plot(*sample[-1], ".", color=colour, markersize=3)
    axis.set_xlim(0, scene)
    axis.set_ylim(scene, 0)
    axis.set_xticks([])
    axis.set_yticks([])
