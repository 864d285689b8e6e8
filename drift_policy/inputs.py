"""Checks of the observations and noise that a PyTorch policy is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.image import RANGE_TOLERANCE
from drift_policy.runtime.step_features import ObservedStep

Specs = Mapping[str, ObservationSpec]


def as_observation(specs: Specs, obs: Any) -> Mapping[str, Any]:
    """Accept the bare array of a policy that has a single observation key."""
    if isinstance(obs, Mapping):
        return obs
    if len(specs) > 1:
        raise ValueError(f"obs must be a dictionary with the keys {list(specs)}.")
    return dict.fromkeys(specs, obs)


def checked_step(specs: Specs, obs_now: Any) -> dict[str, Tensor]:
    """Return one unbatched observation {key: [...]} as tensors, where and of what type it is.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    given = as_observation(specs, obs_now)
    checked: dict[str, Tensor] = {}
    for key, spec in specs.items():
        value = _value(given, key)
        if list(value.shape) != list(spec.shape):
            raise ValueError(
                f"obs[{key!r}] must have shape {list(spec.shape)} (one step, without batch), "
                f"but has {list(value.shape)}.{_channels_hint(spec, value)}"
            )
        _check_values(f"obs[{key!r}]", spec, value)
        checked[key] = value
    return checked


def checked_steps(specs: Specs, obs: Any, steps: int) -> dict[str, Tensor]:
    """Return observations {key: [B, T, ...]} as tensors, where and of what type they are.

    Args:
        specs: of the policy.
        obs: tensors or arrays.
        steps: T.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    given = as_observation(specs, obs)
    checked: dict[str, Tensor] = {}
    batch: int | None = None
    for key, spec in specs.items():
        value = _value(given, key)
        expected = (steps, *spec.shape)
        if value.ndim != len(expected) + 1 or tuple(value.shape[1:]) != expected:
            meaning = "numbers" if spec.kind == "state" else "channels, height, width"
            raise ValueError(
                f"obs[{key!r}] must have shape [B, {', '.join(map(str, expected))}] (batch, observation steps, "
                f"{meaning}), but has {list(value.shape)}.{_channels_hint(spec, value)}"
            )
        if batch is not None and value.shape[0] != batch:
            raise ValueError(f"obs[{key!r}] has batch size {value.shape[0]}, but another key has {batch}.")
        _check_values(f"obs[{key!r}]", spec, value)
        batch = value.shape[0]
        checked[key] = value
    return checked


def checked_features(features: Sequence[Any], batch: int, size: int) -> list[Tensor]:
    """Return features [B, F] of the steps before those that are observed as tensors, where and of what type they are.

    Args:
        features: of each step.
        batch: B.
        size: F.

    Raises:
        ValueError: a wrong shape or a non-finite number.
    """
    checked = [torch.as_tensor(value) for value in features]
    for value in checked:
        if tuple(value.shape) != (batch, size):
            raise ValueError(f"features of a step must have shape {[batch, size]}, but have {list(value.shape)}.")
        check_finite("features", value)
    return checked


def stacked(steps: Sequence[ObservedStep]) -> dict[str, Tensor]:
    """Return steps as one observation {key: [1, T, ...]}."""
    keys = steps[0].observation
    return {key: torch.stack([step.observation[key] for step in steps]).unsqueeze(0) for key in keys}


def check_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinity in what the host gives; tensors on an accelerator are not waited for."""
    if value.is_cpu and value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} holds NaN or infinity: a value is missing.")


def _value(given: Mapping[str, Any], key: str) -> Tensor:
    if key not in given:
        raise ValueError(f"obs lacks the key {key!r}: it has {sorted(given)}.")
    return torch.as_tensor(given[key])


def _check_values(name: str, spec: ObservationSpec, value: Tensor) -> None:
    """Refuse numbers that are not finite, and images that are neither bytes nor floats in 0..1."""
    if spec.kind == "state":
        check_finite(name, value)
        return
    if value.dtype == torch.uint8:
        return
    if not value.is_floating_point():
        raise ValueError(f"{name} is an image of {value.dtype}: give uint8 (0..255) or float (0..1).")
    low, high = (float(extreme) for extreme in torch.aminmax(value))
    # Written so that NaN, with which every comparison fails, is refused.
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"{name} is a float image with values from {low:g} to {high:g}: give float images in 0..1, or uint8."
        )


def _channels_hint(spec: ObservationSpec, value: Tensor) -> str:
    if spec.kind == "image" and value.ndim >= 3 and list(value.shape[-3:]) == [*spec.shape[1:], spec.shape[0]]:
        return " Its channels come last: move them before the height, for example np.moveaxis(image, -1, -3)."
    return ""
