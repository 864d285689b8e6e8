"""The chunks of the nearest observations as further positives of the drift head."""

from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from drift_policy.data.dataset import WindowDataset
from drift_policy.data.neighbours import find_neighbours
from drift_policy.errors import require
from drift_policy.heads.drift import DriftHead
from drift_policy.policy import Policy
from drift_policy.training.trainer_config import TrainerConfig


def add_neighbours(windows: WindowDataset, policy: Policy, config: TrainerConfig, console: Console) -> None:
    """Find the `trainer.neighbours` windows whose chunks attract the samples of each window, and say how near they are.

    Args:
        windows: on the CPU; its batches have positives afterwards.
        policy: with its normaliser set.
        config: the number of neighbours and the width of their weights.
        console: where to report.

    Raises:
        ConfigurationError: the policy has cameras or another head, or there are too few windows of other episodes.
    """
    images = [key for key, spec in policy.config.observations.items() if spec.kind != "state"]
    require(
        not images,
        f"trainer.neighbours={config.neighbours} compares observed numbers, but {', '.join(images)} is an image: set "
        "trainer.neighbours=1.",
    )
    require(
        isinstance(policy.head, DriftHead),
        f"trainer.neighbours={config.neighbours} works with the drift head alone, but policy.head.name is "
        f"{policy.config.head_name!r}: set trainer.neighbours=1.",
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
