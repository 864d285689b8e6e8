"""What a step of training uses, as functions of the step alone: learning rate, windows, random numbers.

A resumed run therefore goes on as if it had never stopped, and several processes agree without talking.
"""

from functools import lru_cache
from math import cos, pi

import numpy as np
import torch

from drift_policy.training.trainer_config import TrainerConfig


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Return the learning rate of the update that follows `step` updates: linear warm-up, then a cosine to zero."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warmup * 0.5 * (1 + cos(pi * step / config.num_steps))


def batch_indices(step: int, num_windows: int, batch_size: int, seed: int) -> np.ndarray:
    """Return the windows of the update that follows `step` updates, without repetition within an epoch."""
    batches = max(1, num_windows // batch_size)
    epoch, position = divmod(step, batches)
    return _epoch_order(seed, epoch, num_windows)[position * batch_size : (position + 1) * batch_size]


def step_seed(step: int, seed: int) -> int:
    """Return the seed of all random numbers of the update that follows `step` updates."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


def step_generator(step: int, seed: int) -> torch.Generator:
    """Return the source of noise and crops of the update that follows `step` updates."""
    return torch.Generator().manual_seed(step_seed(step, seed))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)
