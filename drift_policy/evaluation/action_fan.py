"""The action fan: many chunks that a policy draws from one observation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")  # no screen needed; before pyplot is imported
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drift_policy.data.dataset import WindowDataset
from drift_policy.evaluation.chunked_episode import ChunkedEpisode
from drift_policy.evaluation.rollout import MakeEnv
from drift_policy.metadata_keys import number_name
from drift_policy.policy import Policy
from drift_policy.policy_config import ACTION

FAN = "action_fan.png"
_SAMPLES = 64
_MOMENTS = 4
_NUMBERS = 4  # of an action, if it is not drawn over the scene


@dataclass(frozen=True)
class _Moment:
    step: int  # of the episode
    samples: NDArray[np.float32]  # [G, Tp, Da]
    frame: NDArray[Any] | None = None  # [H, W, 3], the scene
    demonstrated: NDArray[np.float32] | None = None  # [Tp, Da]


def picture_action_fan(policy: Policy, make_env: MakeEnv, seed: int, path: Path, max_steps: int) -> None:
    """Draw the policy's samples at several moments of one episode that it plays.

    Two-dimensional actions that are positions are drawn over the rendered scene; of any other action, the numbers that
    vary most are drawn as curves over the steps of the chunk.

    Args:
        policy: in evaluation mode.
        make_env: makes an environment with render_mode "rgb_array".
        seed: of the episode.
        path: the PNG to write.
        max_steps: length limit of the episode.
    """
    env = ChunkedEpisode(make_env(), policy.n_obs_steps, policy.n_action_steps, max_steps)
    moments, scene = _play(policy, env, seed), _scene_size(env)
    env.close()
    if scene is None:
        _save(_curves(policy, moments), policy, path)
        return
    figure, axes = plt.subplots(1, len(moments), figsize=(4.2 * len(moments), 4.6), squeeze=False, layout="constrained")
    for axis, moment in zip(axes.flat, moments, strict=True):
        _draw_over_scene(axis, moment, policy.n_obs_steps - 1, scene)
    _save(figure, policy, path)


def picture_demonstrated_fan(policy: Policy, windows: WindowDataset, path: Path) -> None:
    """Draw the policy's samples at several recorded observations, beside the chunk that was demonstrated there.

    Args:
        policy: in evaluation mode.
        windows: cut for this policy; those of the first episode are shown, the numbers of an action that vary most.
        path: the PNG to write.
    """
    of_episode = np.flatnonzero(windows.episodes == windows.episodes[0])
    generator = torch.Generator().manual_seed(0)
    moments = []
    for index in _evenly(len(of_episode)):
        batch = windows.batch(of_episode[[index]])
        samples = policy.sample_actions(batch["obs"], _SAMPLES, generator=generator, noise_scale=1.0)[0]
        demonstrated = batch["action"][0].cpu().numpy()
        moments.append(_Moment(int(index), samples.cpu().numpy(), demonstrated=demonstrated))
    figure = _curves(policy, moments)
    _save(figure, policy, path)


def _play(policy: Policy, env: ChunkedEpisode, seed: int) -> list[_Moment]:
    """Return evenly spaced decisions of an episode."""
    generator = torch.Generator().manual_seed(seed)
    observation, info = env.reset(seed=seed)
    moments: list[_Moment] = []
    while not info["episode_over"]:
        batch = {key: observation[key][None] for key in policy.config.observations}
        samples = policy.sample_actions(batch, _SAMPLES, generator=generator, noise_scale=1.0)[0]
        moments.append(_Moment(int(info["steps"]), samples.cpu().numpy(), frame=np.asarray(env.render())))
        chunk = policy.predict_action(batch, generator=generator)["action"][0]
        observation, _, _, _, info = env.step(chunk.cpu().numpy())
    return [moments[index] for index in _evenly(len(moments))]


def _evenly(n_moments: int) -> list[int]:
    """Return the places of a few evenly spaced ones of so many moments, the first and the last among them."""
    return np.unique(np.linspace(0, n_moments - 1, _MOMENTS).round().astype(int)).tolist()


def _scene_size(env: gym.Env[Any, Any]) -> float | None:
    """Return the side of a square scene whose coordinates the actions are, or None."""
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or space.shape[-1] != 2:
        return None
    low, high = space.low[0], space.high[0]
    return float(high[0]) if (low == 0).all() and (high == high[0]).all() else None


def _draw_over_scene(axis: Axes, moment: _Moment, now: int, scene: float) -> None:
    if moment.frame is not None:
        axis.imshow(moment.frame, extent=(0, scene, scene, 0), alpha=0.75)
    for sample, colour in zip(moment.samples, _colours(moment.samples), strict=True):
        axis.plot(sample[now:, 0], sample[now:, 1], color=colour, alpha=0.6, linewidth=0.9)
        axis.plot(*sample[-1], ".", color=colour, markersize=3)
    axis.set(xlim=(0, scene), ylim=(scene, 0), xticks=[], yticks=[], title=f"step {moment.step}")


def _curves(policy: Policy, moments: Sequence[_Moment]) -> Figure:
    """Draw a row for each of the numbers of an action that vary most, and a column for each moment."""
    samples = torch.from_numpy(np.stack([moment.samples for moment in moments])).to(policy.device)
    spread = policy.normalizer.normalize(ACTION, samples).std(dim=(0, 1, 2))
    shown = sorted(spread.argsort(descending=True)[:_NUMBERS].tolist())
    figure, axes = plt.subplots(
        len(shown),
        len(moments),
        figsize=(3.6 * len(moments), 0.8 + 2.1 * len(shown)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    now = policy.n_obs_steps - 1
    for number, row in zip(shown, axes, strict=True):
        for axis, moment in zip(row, moments, strict=True):
            for sample, colour in zip(moment.samples, _colours(moment.samples), strict=True):
                axis.plot(sample[:, number], color=colour, alpha=0.5, linewidth=0.8)
            if moment.demonstrated is not None:
                axis.plot(moment.demonstrated[:, number], color="black", linewidth=1.6, label="demonstrated")
            axis.axvspan(now - 0.5, now + policy.n_action_steps - 0.5, color="black", alpha=0.06, label="executed")
        row[0].set_ylabel(number_name(policy.metadata, ACTION, number))
    for axis, moment in zip(axes[0], moments, strict=True):
        axis.set_title(f"step {moment.step}")
    for axis in axes[-1]:
        axis.set_xlabel("step of the chunk")
    axes[0, 0].legend(fontsize=8)
    return figure


def _colours(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    colours: NDArray[np.float64] = plt.get_cmap("viridis")(np.linspace(0, 1, len(samples)))
    return colours


def _save(figure: Figure, policy: Policy, path: Path) -> None:
    figure.suptitle(
        f"{_SAMPLES} samples from one observation, noise as in training, {policy.num_evaluations} evaluation(s) each"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
