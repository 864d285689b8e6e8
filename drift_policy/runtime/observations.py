"""Observations and noise as arrays: what a policy accepts, and the last steps of an episode. Needs numpy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift_policy.runtime.spec import ObservationKey, PolicySpec
from drift_policy.runtime.step_features import ObservedStep, StepHistory

Arrays = dict[str, NDArray[Any]]
RANGE_TOLERANCE = 1e-3  # a float image this far outside 0..1 is rounding, not another range


def checked_observation(spec: PolicySpec, obs: Any, steps: int | None = None) -> Arrays:
    """Return a batch of observations as float32 numbers and as images, checked.

    Args:
        spec: of the policy.
        obs: {key: [B, T, ...]}, or the array itself for a policy with one key.
        steps: T; To if absent.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    given = as_mapping(spec, obs)
    checked: Arrays = {}
    batch: int | None = None
    for key, expected in spec.observations.items():
        value = _value(given, key)
        shape = (spec.n_obs_steps if steps is None else steps, *expected.shape)
        if value.ndim != len(shape) + 1 or value.shape[1:] != shape:
            meaning = "numbers" if expected.kind == "state" else "channels, height, width"
            raise ValueError(
                f"obs[{key!r}] must have shape [B, {', '.join(map(str, shape))}] (batch, observation steps, "
                f"{meaning}), but has {list(value.shape)}.{_channels_hint(expected, value)}"
            )
        if batch is not None and len(value) != batch:
            raise ValueError(f"obs[{key!r}] has batch size {len(value)}, but another key has {batch}.")
        batch = len(value)
        checked[key] = _checked_values(key, expected, value)
    return checked


def checked_step(spec: PolicySpec, obs_now: Any) -> Arrays:
    """Return a copy of one unbatched observation {key: [...]}, checked: drivers and simulators reuse their buffers.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    given = as_mapping(spec, obs_now)
    checked: Arrays = {}
    for key, expected in spec.observations.items():
        value = _value(given, key)
        if value.shape != expected.shape:
            raise ValueError(
                f"obs[{key!r}] must have shape {list(expected.shape)} (one step, without batch), but has "
                f"{list(value.shape)}.{_channels_hint(expected, value)}"
            )
        checked[key] = np.array(_checked_values(key, expected, value))
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
        raise ValueError("noise holds NaN or infinity: a value is missing.")
    return given.reshape(single) if spec.num_candidates == 1 else given


def as_mapping(spec: PolicySpec, obs: Any) -> Mapping[str, Any]:
    """Accept the bare array of a policy that has a single observation key."""
    if isinstance(obs, Mapping):
        return obs
    if len(spec.observations) > 1:
        raise ValueError(f"obs must be a dictionary with the keys {list(spec.observations)}.")
    return dict.fromkeys(spec.observations, obs)


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


def _value(given: Mapping[str, Any], key: str) -> NDArray[Any]:
    if key not in given:
        raise ValueError(f"obs lacks the key {key!r}: it has {sorted(given)}.")
    value = to_array(given[key])
    if value.dtype.kind not in "fiub":
        raise ValueError(f"obs[{key!r}] holds {value.dtype}: give numbers.")
    return value


def _checked_values(key: str, expected: ObservationKey, value: NDArray[Any]) -> NDArray[Any]:
    """Refuse numbers that are not finite, and images that are neither bytes nor floats in 0..1."""
    if expected.kind == "image" and value.dtype == np.uint8:
        return value
    if expected.kind == "image" and value.dtype.kind != "f":
        raise ValueError(f"obs[{key!r}] is an image of {value.dtype}: give uint8 (0..255) or float (0..1).")
    floats = value.astype(np.float32, copy=False)
    if expected.kind == "state":
        if not np.isfinite(floats).all():
            raise ValueError(f"obs[{key!r}] holds NaN or infinity: a value is missing.")
        return floats
    low, high = (float(floats.min()), float(floats.max())) if floats.size else (0.0, 0.0)
    # Written so that NaN, with which every comparison fails, is refused.
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"obs[{key!r}] is a float image with values from {low:g} to {high:g}: give float images in 0..1, or uint8."
        )
    return floats


def _channels_hint(expected: ObservationKey, value: NDArray[Any]) -> str:
    shape = expected.shape
    if expected.kind == "image" and value.ndim >= 3 and value.shape[-3:] == (*shape[1:], shape[0]):
        return " Its channels come last: move them before the height, for example np.moveaxis(image, -1, -3)."
    return ""
