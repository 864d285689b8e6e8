"""What a training batch demonstrates: normalised chunks, with noise on them if asked for.

The noise is a part of the random numbers of a training step, which `Policy.draw` gathers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drift_policy.data.normalizer import Normalizer
from drift_policy.heads import Draws
from drift_policy.heads.drift import Positives
from drift_policy.policy_config import ACTION, POSITIVE_WEIGHTS, POSITIVES, PolicyConfig

OBSERVATION_NOISE = "observation_noise."  # prefix of the noise on the numbers of a state key
_ACTION_NOISE = "action_noise"
_POSITIVE_NOISE = "positive_noise"
# Added to the variances of a covariance, which is singular in double precision if all steps move together.
_RIDGE = 1e-9


class PositiveNoise(NamedTuple):
    """Copies of the demonstrated chunk that attract beside it, each displaced smoothly in time."""

    copies: int  # P - 1
    deviation: float  # standard deviation of the displacement, of normalised actions
    steps: float  # correlation length: displacements s steps apart correlate by exp(-s^2 / (2 steps^2))

    def draw(self, batch: int, horizon: int, action_dim: int, generator: torch.Generator | None) -> Tensor:
        """Return displacements [batch, P - 1, Tp, Da]: Gaussian processes over the steps, one an action number."""
        steps = torch.arange(horizon, dtype=torch.float64)
        covariance = ((steps - steps.unsqueeze(1)) / self.steps).square().div(-2).exp()
        factor = torch.linalg.cholesky(covariance + _RIDGE * torch.eye(horizon, dtype=torch.float64)).float()
        white = torch.randn((batch, self.copies, horizon, action_dim), generator=generator)
        return self.deviation * (factor @ white)


def draw_augmentation(
    config: PolicyConfig,
    batch: int,
    generator: torch.Generator | None,
    *,
    observations: float,
    action: float,
    positives: PositiveNoise | None,
) -> Draws:
    """Return the noise of `batch` observations, one row each; a deviation of 0 draws none.

    Args:
        config: sizes of observations and chunks.
        batch: B.
        generator: source of the numbers.
        observations: standard deviation on normalised observed numbers, [B, To, D] for each state key.
        action: standard deviation on normalised chunks, [B, Tp, Da].
        positives: of copies of the chunks, [B, P - 1, Tp, Da]; None draws none.
    """
    draws: Draws = {}
    if observations > 0:
        for key, spec in config.observations.items():
            if spec.kind == "state":
                shape = (batch, config.n_obs_steps, *spec.shape)
                draws[f"{OBSERVATION_NOISE}{key}"] = observations * torch.randn(shape, generator=generator)
    if action > 0:
        draws[_ACTION_NOISE] = action * torch.randn((batch, config.horizon, config.action_dim), generator=generator)
    if positives is not None:
        draws[_POSITIVE_NOISE] = positives.draw(batch, config.horizon, config.action_dim, generator)
    return draws


def below(prefix: str, draws: Draws) -> Draws:
    """Return the draws whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in draws.items() if name.startswith(prefix)}


def demonstrated(
    batch: Mapping[str, Any], draws: Draws, config: PolicyConfig, normalizer: Normalizer
) -> tuple[Tensor, Positives | None]:
    """Return the normalised chunks [B, Tp, Da] of a batch, with the drawn noise, and its positives if it has several.

    Args:
        batch: see `Policy.compute_loss`.
        draws: of the step; the noise displaces all positives of an observation alike.
        config: sizes of chunks.
        normalizer: of the policy.

    Raises:
        ValueError: actions or positives of another shape, or the batch has positives and the draws have copies.
    """
    given = batch[ACTION]
    if given.ndim != 3 or tuple(given.shape[1:]) != (config.horizon, config.action_dim):
        raise ValueError(
            f"batch['action'] must have shape [B, {config.horizon}, {config.action_dim}] (batch, horizon, action "
            f"size), but has {list(given.shape)}."
        )
    action, noise = normalizer.normalize(ACTION, given), draws.get(_ACTION_NOISE)
    if noise is not None:
        action = action + noise
    copies = draws.get(_POSITIVE_NOISE)
    if POSITIVES not in batch:
        return action, None if copies is None else _with_copies(action, copies)
    if copies is not None:
        raise ValueError(f"batch['{POSITIVES}'] and copies of the demonstrated chunk cannot be combined: choose one.")
    chunks, weights = batch[POSITIVES], batch[POSITIVE_WEIGHTS]
    if chunks.ndim != 4 or tuple(chunks.shape) != (len(given), *weights.shape[1:], config.horizon, config.action_dim):
        raise ValueError(
            f"batch['{POSITIVES}'] must have shape [{len(given)}, P, {config.horizon}, {config.action_dim}] and batch["
            f"'{POSITIVE_WEIGHTS}'] [{len(given)}, P], but they have {list(chunks.shape)} and {list(weights.shape)}."
        )
    chunks = normalizer.normalize(ACTION, chunks)
    return action, Positives(chunks if noise is None else chunks + noise.unsqueeze(1), weights)


def _with_copies(action: Tensor, displacements: Tensor) -> Positives:
    """Return chunks [B, Tp, Da] and copies of them that are displaced, [B, P - 1, Tp, Da], as equal positives."""
    own = action.unsqueeze(1)
    chunks = torch.cat([own, own + displacements], dim=1)
    return Positives(chunks, chunks.new_full(chunks.shape[:2], 1 / chunks.shape[1]))
