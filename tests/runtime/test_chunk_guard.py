"""Limits that a chunk must keep before any of it is executed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drift_policy.errors import ConfigurationError
from drift_policy.runtime.chunk_guard import ChunkGuard

NOTHING = np.zeros((0, 2))
PERIOD = 0.1


def line(*values: float) -> np.ndarray:
    """A chunk that moves in its first dimension alone."""
    return np.stack([np.array(values), np.zeros(len(values))], axis=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_always_refused(value: float) -> None:
    chunk = line(0, 1, 2)
    chunk[1, 1] = value
    assert ChunkGuard().violation(chunk, NOTHING, PERIOD) == f"action 1 of the chunk, dimension 1, is {value}"


def test_without_limits_every_finite_chunk_passes() -> None:
    assert ChunkGuard().violation(line(0, 1e9, -1e9), line(5), PERIOD) is None


@pytest.mark.parametrize(
    ("limits", "chunk", "before", "message"),
    [
        ({"low": 0}, line(0, -1), NOTHING, "position -1 of action 1 of the chunk, dimension 0, is outside 0 to inf"),
        ({"high": [3, 9]}, line(3, 4), NOTHING, "position 4 of action 1"),
        ({"max_velocity": 15}, line(0, 1, 3), NOTHING, "velocity 20 of action 2"),
        ({"max_velocity": 15}, line(3, 3), line(1), "velocity 20 of action 0"),
        ({"max_acceleration": 150}, line(0, 1, 4), NOTHING, "acceleration 200 of action 2"),
        ({"max_acceleration": 150}, line(4, 7), line(0, 1), "acceleration 200 of action 0"),
        ({"max_jerk": 1500}, line(0, 0, 0, 2), NOTHING, "jerk 2000 of action 3"),
        ({"max_jerk": 1500}, line(2), line(0, 0, 0), "jerk 2000 of action 0"),
        ({"max_jump": 2}, line(8, 20), line(1, 5), "jump 3 of action 0"),
        # The limits of the dimension that exceeds its own.
        ({"low": [-9, -1], "high": [9, -0.5]}, line(1), NOTHING, "dimension 1, is outside -1 to -0.5"),
    ],
)
def test_what_exceeds_a_limit_is_named(
    limits: dict[str, Any], chunk: np.ndarray, before: np.ndarray, message: str
) -> None:
    violation = ChunkGuard(**limits).violation(chunk, before, PERIOD)
    assert violation is not None
    assert message in violation


@pytest.mark.parametrize(
    ("limits", "chunk", "before"),
    [
        ({"low": 0, "high": 3}, line(0, 3), NOTHING),
        ({"low": [0, 0], "high": [3, 0]}, line(0, 3), NOTHING),  # a dimension that must not move
        ({"max_velocity": 15}, line(0, 1, 2), NOTHING),
        ({"max_velocity": 15}, line(0, 1), line(900, 1)),  # the past is past
        ({"max_jerk": 1500}, line(0, 1), NOTHING),  # too short for a third difference
        ({"max_jump": 2}, line(6, 20, 90), line(5)),  # inside a chunk there is no jump
        ({"max_jump": 2}, line(6), NOTHING),
        ({"max_velocity": 1, "max_jump": 1}, np.zeros((0, 2)), line(5)),
    ],
)
def test_what_keeps_the_limits_passes(limits: dict[str, Any], chunk: np.ndarray, before: np.ndarray) -> None:
    assert ChunkGuard(**limits).violation(chunk, before, PERIOD) is None


@given(
    chunk=hnp.arrays(np.float64, (6, 2), elements=st.floats(-10, 10)),
    before=hnp.arrays(np.float64, (3, 2), elements=st.floats(-10, 10)),
)
def test_a_chunk_passes_exactly_when_the_whole_motion_keeps_the_limits(chunk: np.ndarray, before: np.ndarray) -> None:
    guard = ChunkGuard(max_velocity=100.0, max_acceleration=1500.0, max_jerk=20000.0)
    path = np.concatenate([before, chunk])
    kept = all(
        (np.abs(np.diff(path, n=order, axis=0)[-6:]) / PERIOD**order <= limit).all()
        for order, limit in ((1, 100.0), (2, 1500.0), (3, 20000.0))
    )
    assert (guard.violation(chunk, before, PERIOD) is None) == kept


@pytest.mark.parametrize(
    "limits",
    [
        {"on_violation": "ignore"},
        {"max_velocity": 0},
        {"max_acceleration": 0},
        {"max_jump": 0},
        {"max_jerk": [1, -1]},
        {"low": 1, "high": 0},
        {"low": np.nan},
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ChunkGuard(**limits)


@pytest.mark.parametrize("name", ["low", "high", "max_velocity", "max_acceleration", "max_jerk", "max_jump"])
def test_limits_of_another_action_size_are_refused(name: str) -> None:
    guard = ChunkGuard(**{name: [1, 2, 3]})  # type: ignore[arg-type]
    guard.check_size(3)
    with pytest.raises(ConfigurationError, match="each of the 2 dimensions"):
        guard.check_size(2)
