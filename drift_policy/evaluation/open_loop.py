"""The action error on demonstrations, in open loop: what can be measured of a policy without an environment.

The policy decides at the observations that were recorded, and what it would do is held against what was demonstrated.
It never sees the consequences of its own actions, so a small error does not promise success on the robot.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen needed; before pyplot is imported
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from drift_policy.data.dataset import WindowDataset
from drift_policy.evaluation.rollout import EvaluationConfig, episode_generator
from drift_policy.evaluation.statistics import Interval, mean_interval
from drift_policy.metadata_keys import number_name
from drift_policy.policy import Policy
from drift_policy.policy_config import ACTION

_MAX_PANELS = 12


@dataclass(frozen=True)
class OpenLoopEpisode:
    """What a policy would have done in one demonstration: K decisions, one every Ta steps."""

    episode: int  # number in the data
    predicted: NDArray[np.float32]  # [K, Ta, Da] in the units of the demonstrations
    demonstrated: NDArray[np.float32]  # [K, Ta, Da]
    action_mse: float  # mean squared error of normalised actions, whose range is -1..1

    @property
    def action_error(self) -> float:
        """Root mean squared error in the units of the demonstrations."""
        return float(np.sqrt(np.mean((self.predicted - self.demonstrated) ** 2)))


@dataclass(frozen=True)
class OpenLoopResult:
    """All episodes of a measurement and the time of every decision."""

    episodes: list[OpenLoopEpisode]
    latency_ms: list[float] = field(repr=False)  # predict_action, batch 1

    @property
    def action_mse(self) -> Interval:
        """Mean over episodes of the normalised squared error."""
        return mean_interval([episode.action_mse for episode in self.episodes])

    @property
    def action_error(self) -> Interval:
        """Mean over episodes of the error in the units of the demonstrations."""
        return mean_interval([episode.action_error for episode in self.episodes])

    @property
    def error_of_numbers(self) -> NDArray[np.float32]:
        """Root mean squared error of each number of an action, [Da], in the units of the demonstrations."""
        squared = [(episode.predicted - episode.demonstrated) ** 2 for episode in self.episodes]
        numbers: NDArray[np.float32] = np.sqrt(np.concatenate(squared).mean(axis=(0, 1)))
        return numbers

    def latency(self, percentile: float) -> float:
        """Return a percentile of the decision time in milliseconds."""
        return float(np.percentile(self.latency_ms, percentile))


def measure_open_loop(
    policy: Policy,
    windows: WindowDataset,
    episode_ends: NDArray[np.int64],
    config: EvaluationConfig,
    on_episode: Callable[[OpenLoopEpisode], None] | None = None,
) -> OpenLoopResult:
    """Let a policy decide every Ta steps of the first `config.n_episodes` episodes of `windows`.

    Args:
        policy: in evaluation mode.
        windows: of the episodes to measure on, cut for this policy.
        episode_ends: [E] of the buffer that the windows come from.
        config: how many episodes; `policy_seed`, `noise_scale`, `num_candidates` and `mirrored` are those of its
            decisions.
        on_episode: called after each episode, for progress displays.

    Raises:
        ConfigurationError: the policy cannot give the candidates that are asked for.
    """
    config.check_fits(policy)
    now = policy.n_obs_steps - 1
    executed = slice(now, now + policy.n_action_steps)
    episode_of = np.searchsorted(episode_ends, windows.rows[:, now].cpu().numpy(), side="right")
    result = OpenLoopResult([], [])
    for episode in np.unique(episode_of)[: config.n_episodes].tolist():
        generator = episode_generator(config.policy_seed, episode)
        predicted, demonstrated = [], []
        for window in np.flatnonzero(episode_of == episode)[:: policy.n_action_steps]:
            batch = windows.batch(np.array([window]))
            started = time.perf_counter()
            chunk = policy.predict_action(
                batch["obs"],
                generator=generator,
                noise_scale=config.noise_scale,
                num_candidates=config.num_candidates,
                mirrored=config.mirrored,
            )["action"]
            predicted.append(chunk.cpu())
            result.latency_ms.append((time.perf_counter() - started) * 1000)
            demonstrated.append(batch["action"][:, executed].cpu())
        measured = _measured(policy, episode, torch.cat(predicted), torch.cat(demonstrated))
        result.episodes.append(measured)
        if on_episode is not None:
            on_episode(measured)
    return result


def _measured(policy: Policy, episode: int, predicted: torch.Tensor, demonstrated: torch.Tensor) -> OpenLoopEpisode:
    device = policy.device
    drawn, target = (policy.normalizer.normalize(ACTION, chunk.to(device)) for chunk in (predicted, demonstrated))
    return OpenLoopEpisode(
        episode=episode,
        predicted=predicted.numpy(),
        demonstrated=demonstrated.numpy(),
        action_mse=float((drawn - target).square().mean()),
    )


def picture_open_loop(policy: Policy, episode: OpenLoopEpisode, path: Path) -> None:
    """Draw demonstrated and predicted actions over the steps of an episode: the 12 numbers that move most."""
    n_decisions, n_steps, n_numbers = episode.predicted.shape
    shown = np.sort(np.argsort(-episode.demonstrated.std(axis=(0, 1)))[:_MAX_PANELS])
    n_columns = min(len(shown), 4)
    n_rows = -(-len(shown) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(4.2 * n_columns, 2.8 * n_rows), squeeze=False, layout="constrained"
    )
    steps = np.arange(n_decisions * n_steps).reshape(n_decisions, n_steps)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for number, axis in zip(shown, axes.flat, strict=False):
        axis.plot(steps.reshape(-1), episode.demonstrated[..., number].reshape(-1), color="black", label="demonstrated")
        for decision in range(n_decisions):
            label = "predicted, one line a decision" if decision == 0 else None
            axis.plot(steps[decision], episode.predicted[decision, :, number], color="tab:orange", label=label)
        axis.set_title(number_name(policy.metadata, ACTION, int(number)))
        axis.set_xlabel("step")
    axes.flat[0].legend(fontsize=8)
    left_out = f"; {len(shown)} of {n_numbers} numbers, those that move most" if len(shown) < n_numbers else ""
    figure.suptitle(f"episode {episode.episode}: decisions at recorded observations{left_out}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
