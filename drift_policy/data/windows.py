"""Which steps make up each training window: Diffusion Policy's sampler, and its split into training and validation.

A window is `horizon` steps of one episode. It may start before the episode or end after it; the missing steps repeat
the episode's first or last step. Of every window the policy sees the first n_obs_steps (To) steps and executes the
n_action_steps (Ta) steps from To-1 on, so windows start from -(To-1) and overhang the end by at most Ta-1.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from drift_policy.errors import ConfigurationError, DataError


@dataclass(frozen=True)
class Windows:
    """W windows of `horizon` steps; see `create_indices` for the four numbers of each."""

    indices: NDArray[np.int64]  # [W, 4] buffer_start, buffer_end, sample_start, sample_end
    horizon: int  # steps in a window, Tp

    @classmethod
    def create(
        cls,
        episode_ends: NDArray[np.int64],
        *,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        episode_mask: NDArray[np.bool_] | None = None,
    ) -> "Windows":
        """Cut windows from the episodes of the mask [E] (all by default), padded by To-1 before and Ta-1 after.

        Raises:
            ConfigurationError: step counts that do not fit: 1 <= To, 1 <= Ta and To - 1 + Ta <= horizon.
            DataError: the mask has the wrong length or selects no episode.
        """
        _check_steps(horizon, n_obs_steps, n_action_steps)
        mask = np.ones(len(episode_ends), bool) if episode_mask is None else np.asarray(episode_mask)
        if mask.dtype != bool or mask.shape != episode_ends.shape:
            raise DataError(
                f"The episode mask must be boolean of shape {list(episode_ends.shape)}, "
                f"but is {mask.dtype} of shape {list(mask.shape)}."
            )
        if not mask.any():
            raise DataError(f"The episode mask selects none of the {len(mask)} episodes: at least one is needed.")
        return cls(create_indices(episode_ends, horizon, n_obs_steps - 1, n_action_steps - 1, mask), horizon)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row number in the replay buffer of every step of every window, [W, horizon]."""
        rows: NDArray[np.int64] = gather_rows(self.indices, self.horizon)
        return rows


@numba.njit(cache=True)
def create_indices(
    episode_ends: NDArray[np.int64], horizon: int, pad_before: int, pad_after: int, episode_mask: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """List the windows of the masked episodes, [W, 4], in the order of the buffer.

    In an episode of L steps, windows start at every step from -pad_before to L - horizon + pad_after, both included, as
    in Diffusion Policy's sampler. Steps buffer_start to buffer_end (excluded) of the buffer fill positions sample_start
    to sample_end (excluded) of the window; the positions outside repeat the nearest step.

    An episode so short that this range is empty gives one window, which starts at -pad_before and holds the whole
    episode. (Diffusion Policy drops such an episode.)
    """
    total = 0
    for episode in range(len(episode_ends)):
        if episode_mask[episode]:
            length = episode_ends[episode] - (episode_ends[episode - 1] if episode > 0 else 0)
            total += max(length - horizon + pad_after, -pad_before) + pad_before + 1
    indices = np.empty((total, 4), np.int64)
    window = 0
    for episode in range(len(episode_ends)):
        if episode_mask[episode]:
            begin = episode_ends[episode - 1] if episode > 0 else 0
            length = episode_ends[episode] - begin
            for start in range(-pad_before, max(length - horizon + pad_after, -pad_before) + 1):
                first = max(start, 0)
                last = min(start + horizon, length)
                indices[window, 0] = begin + first
                indices[window, 1] = begin + last
                indices[window, 2] = first - start
                indices[window, 3] = last - start
                window += 1
    return indices


@numba.njit(cache=True)
def gather_rows(indices: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Turn windows [W, 4] into row numbers of the buffer, [W, horizon]: `column[rows[w]]` is window w."""
    rows = np.empty((len(indices), horizon), np.int64)
    for window in range(len(indices)):
        buffer_start, buffer_end, sample_start, _ = indices[window]
        for step in range(horizon):
            rows[window, step] = min(max(buffer_start + step - sample_start, buffer_start), buffer_end - 1)
    return rows


def split_validation(n_episodes: int, val_ratio: float = 0.02, seed: int = 42) -> NDArray[np.bool_]:
    """Draw the validation episodes, [E] with True for validation: the same episodes as Diffusion Policy at this seed.

    At least one episode goes to each side, unless the ratio is 0 or there is only one episode (then none is held out).

    Raises:
        ConfigurationError: the ratio is not in 0 .. 1 (1 excluded).
    """
    if not 0 <= val_ratio < 1:
        raise ConfigurationError(f"val_ratio must be at least 0 and below 1, but is {val_ratio}.")
    mask = np.zeros(n_episodes, bool)
    if val_ratio > 0:
        n_validation = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
        mask[np.random.default_rng(seed).choice(n_episodes, size=n_validation, replace=False)] = True
    return mask


def limit_episodes(train_mask: NDArray[np.bool_], max_train_episodes: int | None, seed: int = 42) -> NDArray[np.bool_]:
    """Keep at most `max_train_episodes` of the True episodes, [E]: the same as Diffusion Policy's downsample_mask.

    Raises:
        ConfigurationError: the limit is below 1 (None means no limit).
    """
    if max_train_episodes is None:
        return train_mask
    if max_train_episodes < 1:
        raise ConfigurationError(
            f"max_train_episodes must be at least 1, or null for all, but is {max_train_episodes}."
        )
    candidates = np.flatnonzero(train_mask)
    if len(candidates) <= max_train_episodes:
        return train_mask
    kept = np.random.default_rng(seed).choice(len(candidates), size=max_train_episodes, replace=False)
    limited = np.zeros_like(train_mask)
    limited[candidates[kept]] = True
    return limited


def _check_steps(horizon: int, n_obs_steps: int, n_action_steps: int) -> None:
    given = f"horizon={horizon}, n_obs_steps={n_obs_steps}, n_action_steps={n_action_steps}"
    if n_obs_steps < 1 or n_action_steps < 1:
        raise ConfigurationError(f"n_obs_steps and n_action_steps must be at least 1, but got {given}.")
    if n_obs_steps - 1 + n_action_steps > horizon:
        raise ConfigurationError(
            "The executed actions are steps n_obs_steps - 1 to n_obs_steps - 1 + n_action_steps of the horizon, so "
            f"horizon must be at least {n_obs_steps - 1 + n_action_steps}, but got {given}."
        )
