"""Evaluation of tasks without an environment: the open-loop action error on demonstrations that were held out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from drift_policy.data.dataset import WindowDataset
from drift_policy.data.ranges import far_numbers
from drift_policy.data.replay_buffer import ReplayBuffer
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.evaluation.action_fan import FAN, picture_demonstrated_fan
from drift_policy.evaluation.open_loop import OpenLoopEpisode, OpenLoopResult, measure_open_loop, picture_open_loop
from drift_policy.evaluation.rollout import EvaluationConfig
from drift_policy.metadata_keys import TRAINED_EPISODES, number_name
from drift_policy.policy import Policy
from drift_policy.policy_config import ACTION
from drift_policy.task import Demonstrations, TaskConfig, make_windows, observation_specs

PICTURE = "open_loop.png"


def evaluate_offline(
    policy: Policy,
    windows: WindowDataset,
    episode_ends: NDArray[np.int64],
    config: EvaluationConfig,
    console: Console,
) -> OpenLoopResult:
    """Measure a policy with a progress bar and print its errors.

    Args:
        policy: in evaluation mode.
        windows: of the episodes to measure on.
        episode_ends: [E] of the buffer that the windows come from.
        config: see `measure_open_loop`.
        console: where to report.
    """
    with Progress(
        TextColumn("episodes"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        n_episodes = len(np.unique(np.searchsorted(episode_ends, windows.rows[:, -1].cpu().numpy(), side="right")))
        bar = progress.add_task("episodes", total=min(config.n_episodes, n_episodes))

        def on_episode(_: OpenLoopEpisode) -> None:
            progress.advance(bar)

        result = measure_open_loop(policy, windows, episode_ends, config, on_episode)
    console.print(_table(result, policy))
    return result


def draw_open_loop(
    policy: Policy, windows: WindowDataset, result: OpenLoopResult, folder: Path, console: Console
) -> None:
    """Draw the first episode of a measurement, and what the policy draws at moments of it, into a folder."""
    picture_open_loop(policy, result.episodes[0], folder / PICTURE)
    picture_demonstrated_fan(policy, windows, folder / FAN)
    console.print(f"pictures {folder}: {PICTURE}, {FAN}", highlight=False)


def windows_to_evaluate(
    policy: Policy, task: TaskConfig, demonstrations: Demonstrations, console: Console
) -> WindowDataset:
    """Cut the episodes that a checkpoint did not train on: those held out, and those of other demonstrations.

    Raises:
        CheckpointError: the checkpoint belongs to another task, or does not say what it was trained on.
        ConfigurationError: it was trained on all of these demonstrations.
    """
    buffer = demonstrations.buffer
    mask = _not_trained_on(policy, buffer)
    console.print(
        f"data     {mask.sum()} of {buffer.n_episodes} episodes: the policy was not trained on them", highlight=False
    )
    windows = make_windows(
        task,
        buffer,
        mask,
        horizon=policy.horizon,
        n_obs_steps=policy.n_obs_steps,
        n_action_steps=policy.n_action_steps,
    )
    found = {key: spec.shape for key, spec in observation_specs(task, windows).items()}
    wanted = {key: spec.shape for key, spec in policy.config.observations.items()}
    if found != wanted or windows.action.shape[1] != policy.action_dim:
        raise CheckpointError(
            f"The policy observes {wanted} and commands {policy.action_dim} numbers, but the task {task.name!r} has "
            f"{found} and {windows.action.shape[1]}: the checkpoint belongs to another task."
        )
    arrays = windows.stats_arrays()
    far = far_numbers(policy.normalizer, arrays, policy.metadata)
    if far:
        count = sum(array.shape[1] for array in arrays.values())
        console.print(
            f"note     {len(far)} of {count} numbers of the demonstrations lie far outside those that the policy was "
            f"trained on: {max(far)[1]}. Are they in the same units?",
            highlight=False,
        )
    return windows


def _not_trained_on(policy: Policy, buffer: ReplayBuffer) -> NDArray[np.bool_]:
    trained = policy.metadata.get(TRAINED_EPISODES)
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        raise CheckpointError(
            f"metadata.{TRAINED_EPISODES} of the checkpoint must be a list of hashes of episodes: without it nobody "
            "knows which demonstrations it has not seen. Train it again with this version."
        )
    mask = ~np.isin(buffer.episode_hashes(), trained)
    if not mask.any():
        raise ConfigurationError(
            "The policy was trained on every episode of these demonstrations: there is nothing to measure it on. "
            "Give others with data_path=..., or train with trainer.val_ratio=0.02."
        )
    return mask


def open_loop_manifest(policy: Policy, result: OpenLoopResult, config: EvaluationConfig) -> dict[str, Any]:
    """Return what a manifest records of a measurement, every episode included."""
    return {
        "action_error": result.action_error.to_mapping(),
        "action_mse": result.action_mse.to_mapping(),
        "error_of_numbers": [float(error) for error in result.error_of_numbers],
        "network_evaluations": policy.num_evaluations,
        "latency_ms": {"p50": result.latency(50), "p99": result.latency(99), "decisions": len(result.latency_ms)},
        **config.decisions_of(policy),
        "protocol": {name: asdict(config)[name] for name in ("n_episodes", "policy_seed")},
        "episodes": [
            {
                "episode": episode.episode,
                "decisions": len(episode.predicted),
                "action_error": episode.action_error,
                "action_mse": episode.action_mse,
            }
            for episode in result.episodes
        ],
    }


def _table(result: OpenLoopResult, policy: Policy) -> Table:
    n_decisions = sum(len(episode.predicted) for episode in result.episodes)
    n_episodes = len(result.episodes)
    table = Table(title=f"open loop on {n_episodes} episode{'s' * (n_episodes != 1)}, {n_decisions} decisions")
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    for label, interval in (
        ("action error, in units of the data", result.action_error),
        ("squared error, normalised", result.action_mse),
    ):
        table.add_row(label, f"{interval.mean:.4g}", interval.span(".4g"))
    worst = int(np.argmax(result.error_of_numbers))
    name = Text(f"largest error: {number_name(policy.metadata, ACTION, worst)}")  # as text: brackets are no markup
    table.add_row(name, f"{result.error_of_numbers[worst]:.4g}", "")
    table.add_row("decision p50 / p99, ms", f"{result.latency(50):.2f}", f"{result.latency(99):.2f}")
    return table
