"""Checks of the arguments of the drift core. Every message says what was given and what is expected."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_NOT_FINITE = "must be finite, but holds NaN or infinity"
_NOT_POSITIVE = "must be positive and finite"


class NotFiniteError(ValueError):
    """A number that a network computes or learns is not finite, or a temperature not positive: training diverged."""


def is_not_finite(error: Exception) -> bool:
    """Whether an error is a `NotFiniteError`, or a RuntimeError of its words, which compiled code raises instead."""
    if isinstance(error, RuntimeError):
        return any(words in str(error) for words in (_NOT_FINITE, _NOT_POSITIVE))
    return isinstance(error, NotFiniteError)


def check_matrix(name: str, value: Tensor, columns: int | None = None) -> None:
    """Require a finite floating-point [rows, columns] tensor with at least one row."""
    _check_floating(name, value)
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must have shape [samples, features], neither zero, but has {list(value.shape)}.")
    if columns is not None and value.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns like x, but has shape {list(value.shape)}.")
    check_finite(name, value)


def check_samples(name: str, value: Tensor, like: Tensor | None = None, allow_empty: bool = False) -> Tensor:
    """Require a finite floating-point [B, samples, S] tensor; `like` fixes B, S and the device.

    Returns:
        The largest magnitude of each problem, [B], without gradient: the pass over the entries that finds those which
        are not finite finds it too.
    """
    _check_floating(name, value)
    if value.ndim != 3:
        raise ValueError(f"{name} must have shape [B, samples, S], but has {list(value.shape)}.")
    batch, samples, size = value.shape
    if batch == 0 or size == 0 or (samples == 0 and not allow_empty):
        raise ValueError(f"{name} must not be empty, but has shape {list(value.shape)}.")
    if like is not None:
        if (batch, size) != (like.shape[0], like.shape[2]):
            raise ValueError(
                f"{name} must have shape [{like.shape[0]}, samples, {like.shape[2]}] to match gen, "
                f"but has {list(value.shape)}."
            )
        if value.device != like.device:
            raise ValueError(f"{name} is on {value.device}, but gen is on {like.device}: move one of them.")
    with torch.no_grad():
        if samples == 0:
            return value.new_zeros(batch)
        # The extremes of a tensor with NaN are NaN. One pass for both (aminmax) takes far longer on a CPU.
        magnitude = torch.maximum(-value.amin(dim=(1, 2)), value.amax(dim=(1, 2)))
        _check_all(torch.isfinite(magnitude), f"{name} {_NOT_FINITE}.", NotFiniteError)
        return magnitude


def check_weights(name: str, value: Tensor, samples: Tensor) -> None:
    """Require finite, non-negative weights [B, samples], one for each of `samples`."""
    _check_floating(name, value)
    expected = list(samples.shape[:2])
    if list(value.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, but has {list(value.shape)}.")
    if value.device != samples.device:
        raise ValueError(f"{name} is on {value.device}, but gen is on {samples.device}: move one of them.")
    if value.numel():
        lowest, highest = value.aminmax()
        valid = (lowest >= 0) & torch.isfinite(highest)
        _check_all(valid, f"{name} must be finite and not negative.", ValueError)


def check_temperature(name: str, value: float) -> None:
    """Require a positive finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:  # math.isfinite would break a compiled graph
        raise ValueError(f"{name} must be a positive finite number, but is {value!r}.")


def check_temperatures(name: str, values: Sequence[float] | Tensor) -> None:
    """Require at least one temperature, all positive; numbers also different, a tensor [R] may hold equal ones."""
    if isinstance(values, Tensor):
        _check_floating(name, values)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"{name} must have shape [R] with R of at least one, but has {list(values.shape)}.")
        _check_all(torch.isfinite(values) & (values > 0), f"{name} {_NOT_POSITIVE}.", NotFiniteError)
        return
    if len(values) == 0:
        raise ValueError(f"{name} must hold at least one temperature, but is empty.")
    for value in values:
        check_temperature(name, value)
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must be different from each other, but are {tuple(values)!r}.")


def check_affinity_floor(name: str, value: float) -> None:
    """Require a number in [0, 1): affinities are at most 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), but is {value!r}.")


def check_finite(name: str, value: Tensor) -> None:
    """Require that every entry is finite; else a `NotFiniteError`, or see `is_not_finite`."""
    if value.numel():  # one pass: the extremes of a tensor with NaN are NaN
        _check_all(torch.isfinite(torch.stack(value.aminmax())), f"{name} {_NOT_FINITE}.", NotFiniteError)


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, but is a {type(value).__name__}.")
    if not value.is_floating_point():
        raise ValueError(f"{name} must hold floating-point numbers, but holds {value.dtype}.")


def _check_all(condition: Tensor, message: str, kind: type[ValueError]) -> None:
    """Raise an error on a CPU; elsewhere assert on the device, so that training never waits for the host."""
    if condition.is_cpu and not torch.compiler.is_compiling():
        if not bool(condition.all()):
            raise kind(message)
    else:
        torch._assert_async(condition.all(), message)
