"""Further positives of the drift head: chunks of the nearest observations, shifted in time, or displaced copies."""

from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from drift_policy.data.dataset import WindowDataset
from drift_policy.data.neighbours import find_neighbours
from drift_policy.data.time_shifts import shifted_windows
from drift_policy.errors import require
from drift_policy.heads.drift import DriftHead
from drift_policy.policy import Policy
from drift_policy.training.trainer_config import ONE_POSITIVE, TrainerConfig


def add_positives(windows: WindowDataset, policy: Policy, config: TrainerConfig, console: Console) -> None:
    """Find what attracts the samples of a window beside its own chunk, if the trainer asks for it, and say what it is.

    Args:
        windows: on the CPU; its batches have positives afterwards, unless they are copies, drawn anew at every step.
        policy: with its normaliser set.
        config: which positives; see `TrainerConfig`.
        console: where to report.

    Raises:
        ConfigurationError: the policy has another head; for neighbours also: it has cameras, or there are too few
            windows of other episodes.
    """
    asked = config.further_positives
    if asked is None:
        return
    require(
        isinstance(policy.head, DriftHead),
        f"trainer.{asked}={getattr(config, asked)} works with the drift head alone, but policy.head.name is "
        f"{policy.config.head_name!r}: set trainer.{asked}={ONE_POSITIVE[asked]}.",
    )
    if asked == "positive_copies":
        console.print(
            f"copies   {config.positive_copies + 1} chunks attract the samples of an observation: its own, and copies "
            f"displaced by {config.positive_noise:g}, alike over {config.positive_noise_steps:g} steps",
            highlight=False,
        )
    elif asked == "time_shifts":
        windows.neighbours = shifted_windows(windows.episodes, config.time_shifts)
        console.print(
            f"shifted  {2 * config.time_shifts + 1} chunks attract the samples of an observation: its own, weight "
            f"{windows.neighbours.weights[0, 0]:.2f}, and those up to {config.time_shifts} steps earlier or later",
            highlight=False,
        )
    else:
        _add_neighbours(windows, policy, config, console)


def _add_neighbours(windows: WindowDataset, policy: Policy, config: TrainerConfig, console: Console) -> None:
    """Find the windows of other episodes that observed nearly the same, and say how near they are."""
    images = [key for key, spec in policy.config.observations.items() if spec.kind != "state"]
    require(
        not images,
        f"trainer.neighbours={config.neighbours} compares observed numbers, but {', '.join(images)} is an image: set "
        "trainer.neighbours=1.",
    )
    neighbours, distances = find_neighbours(
        _observed_numbers(windows, policy),
        windows.episodes,
        count=config.neighbours,
        width=config.neighbour_width,
        track=partial(
            track, description="neighbours", console=console, transient=True, disable=not console.is_terminal
        ),
    )
    windows.neighbours = neighbours
    console.print(
        f"nearest  {config.neighbours} chunks attract the samples of an observation: its own, weight "
        f"{neighbours.weights[:, 0].mean():.2f} on average, and those of other episodes at a median distance of "
        f"{distances[:, 1:].median():.3f}",
        highlight=False,
    )


def _observed_numbers(windows: WindowDataset, policy: Policy) -> Tensor:
    """Return the normalised numbers of all observed steps and keys of each window, [W, To * D]."""
    device = policy.device
    steps = {key: policy.normalizer.normalize(key, value.to(device)) for key, value in windows.observations.items()}
    observed = windows.rows[:, : windows.n_obs_steps]
    return torch.cat([numbers.cpu()[observed].flatten(start_dim=1) for numbers in steps.values()], dim=1)
