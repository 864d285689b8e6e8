"""Checks of the observations and noise that a PyTorch policy is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drift_policy.encoders import ObservationSpec
from drift_policy.runtime.observation_shapes import (
    MISSING_VALUE,
    as_mapping,
    check_range,
    check_step,
    check_steps,
    refuse_type,
    require_key,
)
from drift_policy.runtime.step_features import ObservedStep

Specs = Mapping[str, ObservationSpec]


def checked_step(specs: Specs, obs_now: Any) -> dict[str, Tensor]:
    """Return one unbatched observation {key: [...]} as tensors, where and of what type it is.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    checked = _tensors(specs, obs_now)
    for key, value in checked.items():
        check_step(key, specs[key], value)
        _check_values(f"obs[{key!r}]", specs[key], value)
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
    checked = _tensors(specs, obs)
    check_steps(specs, checked, steps)
    for key, value in checked.items():
        _check_values(f"obs[{key!r}]", specs[key], value)
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
        raise ValueError(f"{name} {MISSING_VALUE}")


def _tensors(specs: Specs, obs: Any) -> dict[str, Tensor]:
    given = as_mapping(specs, obs)
    return {key: torch.as_tensor(require_key(given, key)) for key in specs}


def _check_values(name: str, spec: ObservationSpec, value: Tensor) -> None:
    """Refuse numbers that are not finite, and images that are neither bytes nor floats in 0..1."""
    if spec.kind == "state":
        check_finite(name, value)
    elif value.is_floating_point():
        low, high = torch.aminmax(value)
        check_range(name, float(low), float(high))
    elif value.dtype != torch.uint8:
        refuse_type(name, value.dtype)
