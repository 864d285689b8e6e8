"""Observations and noise as arrays: what a policy accepts, and the last steps of an episode. Needs numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_policy.runtime.observation_shapes import (
    MISSING_VALUE,
    as_mapping,
    check_range,
    check_step,
    check_steps,
    refuse_type,
    require_key,
)
from drift_policy.runtime.spec import ObservationKey, PolicySpec
from drift_policy.runtime.step_features import ObservedStep, StepHistory

Arrays = dict[str, NDArray[Any]]


def checked_observation(spec: PolicySpec, obs: Any, steps: int | None = None) -> Arrays:
    """Return a batch of observations as float32 numbers and as images, checked.

    Args:
        spec: of the policy.
        obs: {key: [B, T, ...]}, or the array itself for a policy with one key.
        steps: T; To if absent.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    arrays = _arrays(spec, obs)
    check_steps(spec.observations, arrays, spec.n_obs_steps if steps is None else steps)
    return {key: _checked_values(key, spec.observations[key], value) for key, value in arrays.items()}


def checked_step(spec: PolicySpec, obs_now: Any) -> Arrays:
    """Return a copy of one unbatched observation {key: [...]}, checked: drivers and simulators reuse their buffers.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    checked = _arrays(spec, obs_now)
    for key, value in checked.items():
        check_step(key, spec.observations[key], value)
        checked[key] = np.array(_checked_values(key, spec.observations[key], value))
    return checked


def checked_noise(spec: PolicySpec, noise: ArrayLike, batch: int) -> NDArray[np.float32]:
    """Return given noise as float32, [B, Tp, Da] of one candidate or [B, N, Tp, Da] of all that the policy draws.

    Args:
        spec: of the policy, whose N is above 1 in the second case.
        noise: [B, Tp, Da] or [B, N, Tp, Da].
        batch: B.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    given = np.asarray(noise, dtype=np.float32)
    single = (batch, spec.horizon, spec.action_dim)
    all_of_them = (batch, spec.num_candidates, *single[1:])
    if given.shape not in (single, all_of_them):
        raise ValueError(
            f"noise must be an array of shape {list(single)}, but has {list(given.shape)}; that of all candidates has "
            f"{list(all_of_them)}."
        )
    if not np.isfinite(given).all():
        raise ValueError(f"noise {MISSING_VALUE}")
    return given.reshape(single) if spec.num_candidates == 1 else given


def to_array(value: Any) -> NDArray[Any]:
    """Return an array, also of a tensor on an accelerator."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


class ObservationHistory(StepHistory):
    """The last To observations of an episode as arrays; the first one stands for the missing earlier ones.

    Args:
        spec: of the policy.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec.n_obs_steps)
        self._spec = spec

    def append(self, obs_now: Any) -> None:
        """Copy one unbatched observation; errors of `checked_step`."""
        super().append(checked_step(self._spec, obs_now))


def stacked(steps: Sequence[ObservedStep]) -> Arrays:
    """Return steps as one observation {key: [1, T, ...]}."""
    return {key: np.stack([step.observation[key] for step in steps])[None] for key in steps[0].observation}


def _arrays(spec: PolicySpec, obs: Any) -> Arrays:
    given = as_mapping(spec.observations, obs)
    arrays = {key: to_array(require_key(given, key)) for key in spec.observations}
    for key, value in arrays.items():
        if value.dtype.kind not in "fiub":
            raise ValueError(f"obs[{key!r}] holds {value.dtype}: give numbers.")
    return arrays


def _checked_values(key: str, expected: ObservationKey, value: NDArray[Any]) -> NDArray[Any]:
    """Refuse numbers that are not finite, and images that are neither bytes nor floats in 0..1."""
    name = f"obs[{key!r}]"
    if expected.kind == "image" and value.dtype == np.uint8:
        return value
    if expected.kind == "image" and value.dtype.kind != "f":
        refuse_type(name, value.dtype)
    floats = value.astype(np.float32, copy=False)
    if expected.kind == "image":
        check_range(name, *((float(floats.min()), float(floats.max())) if floats.size else (0.0, 0.0)))
    elif not np.isfinite(floats).all():
        raise ValueError(f"{name} {MISSING_VALUE}")
    return floats
