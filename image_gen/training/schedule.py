"""What a step of training uses, as functions of the step alone: learning rate, random numbers of a row."""

from __future__ import annotations

import numpy as np
import torch

from image_gen.training.config import MaeRecipe, OptimizerConfig

NOISE, LATENTS = 1, 2  # purposes of a row's random numbers: what a network is given, and latents that are drawn
FIRST_LEARNING_RATE = 1e-6  # where the warm-up starts (released code)


def learning_rate(step: int, config: OptimizerConfig) -> float:
    """Return the learning rate of the update that follows `step` updates: linear from 1e-6, then constant."""
    share = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    return FIRST_LEARNING_RATE + share * (config.learning_rate - FIRST_LEARNING_RATE)


def classification_weight(step: int, recipe: MaeRecipe) -> float:
    """Return the weight of the classifier's loss in the update that follows `step` updates.

    Zero until the last `classification_steps`; there it grows linearly over `classification_ramp` steps, then stays.
    """
    since = step - (recipe.trainer.num_steps - recipe.classification_steps)
    if since < 0 or recipe.classification_steps == 0:
        return 0.0
    share = min(1.0, since / recipe.classification_ramp) if recipe.classification_ramp else 1.0
    return share * recipe.classification_weight


def row_generator(step: int, row: int, seed: int, device: torch.device | str, purpose: int = NOISE) -> torch.Generator:
    """Return the source of random numbers of one row of a step's batch, on the device.

    Rows have sources of their own so that any number of processes, each drawing its rows alone, gives the same batch.
    Different purposes have different numbers.
    """
    state = np.random.SeedSequence([seed, step, row, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) % 2**63)
