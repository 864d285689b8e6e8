"""Checks of the observations and noise that a PyTorch policy is given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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


def checked_step(specs: Specs, obs_now: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return one unbatched observation {key: [...]} as tensors, where it is.

    Args:
        specs: of the policy.
        obs_now: tensors or arrays.
        dtype: of the result; images of bytes stay bytes.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    checked = _tensors(specs, obs_now)
    for key, value in checked.items():
        check_step(key, specs[key], value)
        _check_values(f"obs[{key!r}]", specs[key], value)
    return _in_type(specs, checked, dtype)


def checked_steps(specs: Specs, obs: Any, steps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return observations {key: [B, T, ...]} as tensors, where they are.

    Args:
        specs: of the policy.
        obs: tensors or arrays.
        steps: T.
        dtype: of the result; images of bytes stay bytes.

    Raises:
        ValueError: a missing key, a wrong shape, a non-finite number, or an image outside its range.
    """
    checked = _tensors(specs, obs)
    check_steps(specs, checked, steps)
    for key, value in checked.items():
        _check_values(f"obs[{key!r}]", specs[key], value)
    return _in_type(specs, checked, dtype)


def training_observation(specs: Specs, batch: Mapping[str, Any], steps: int) -> dict[str, Tensor]:
    """Return the observations {key: [B, To, ...]} of a training batch as tensors, their keys and shapes checked.

    Args:
        specs: of the policy.
        batch: see `Policy.compute_loss`; its images may have been cropped before.
        steps: To.

    Raises:
        ValueError: a missing key, something that is no array, or a wrong shape.
    """
    missing = [name for name in ("obs", "action") if name not in batch]
    if missing:
        raise ValueError(
            f"batch lacks {missing[0]!r}: it has {sorted(batch)}, but is {{'obs': {{key: [B, To, ...]}}, 'action': "
            "[B, Tp, Da]}."
        )
    given = _tensors(specs, batch["obs"])
    for key, spec in specs.items():
        shape = list(given[key].shape)
        is_image = spec.kind == "image"
        if len(shape) != len(spec.shape) + 2 or shape[1] != steps or not (is_image or shape[2:] == list(spec.shape)):
            expected = ["C", "H", "W"] if is_image else [str(number) for number in spec.shape]
            raise ValueError(
                f"batch['obs'][{key!r}] must have shape [B, {steps}, {', '.join(expected)}] (batch, the first "
                f"n_obs_steps steps of the window, {'image' if is_image else 'numbers'}), but has {shape}."
            )
    return given


def with_past_features(features: Sequence[Any], condition: Tensor, size: int) -> Tensor:
    """Put the features [B, F] of earlier steps, tensors or arrays, before the condition [B, T * F] of the others.

    Args:
        features: of each step, oldest first.
        condition: of the steps that are observed.
        size: F.

    Raises:
        ValueError: a wrong shape or a non-finite number.
    """
    checked, batch = [torch.as_tensor(value) for value in features], len(condition)
    for value in checked:
        if tuple(value.shape) != (batch, size):
            raise ValueError(f"features of a step must have shape {[batch, size]}, but have {list(value.shape)}.")
        check_finite("features", value)
    return torch.cat([*(value.to(condition) for value in checked), condition], dim=1) if checked else condition


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
    return {key: _tensor(f"obs[{key!r}]", require_key(given, key)) for key in specs}


def _tensor(name: str, value: Any) -> Tensor:
    """Return a tensor that shares memory where it can.

    Torch takes no array that runs backwards, as an image does whose channels were turned from BGR to RGB: it is copied.
    """
    if isinstance(value, np.ndarray) and any(stride < 0 for stride in value.strides):
        value = value.copy()
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no array of numbers ({type(value).__name__}: {error}).") from error


def _in_type(specs: Specs, values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    def is_bytes(key: str) -> bool:
        return specs[key].kind == "image" and values[key].dtype == torch.uint8

    return {key: value if is_bytes(key) else value.to(dtype) for key, value in values.items()}


def _check_values(name: str, spec: ObservationSpec, value: Tensor) -> None:
    """Refuse numbers that are not finite, and images that are neither bytes nor floats in 0..1."""
    if spec.kind == "state":
        check_finite(name, value)
    elif value.is_floating_point():
        low, high = torch.aminmax(value)
        check_range(name, float(low), float(high))
    elif value.dtype != torch.uint8:
        refuse_type(name, value.dtype)
