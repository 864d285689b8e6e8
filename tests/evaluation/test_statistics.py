"""Intervals against known values and their coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_policy.evaluation.statistics import mean_interval, success_interval


def test_wilson_interval_known_value() -> None:
    interval = success_interval([True] * 8 + [False] * 2)
    assert (interval.mean, interval.n) == (0.8, 10)
    assert interval.low == pytest.approx(0.4902, abs=1e-4)
    assert interval.high == pytest.approx(0.9433, abs=1e-4)


def test_perfect_success_still_has_an_interval() -> None:
    interval = success_interval([True] * 50)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(0.9287, abs=1e-4)


def test_equal_scores_have_an_empty_interval() -> None:
    assert mean_interval([0.5] * 7) == mean_interval([0.5] * 7)
    assert (mean_interval([0.5] * 7).low, mean_interval([0.5] * 7).high) == (0.5, 0.5)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=40))
def test_interval_holds_the_mean(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.n == len(values)
    assert interval.low - 1e-9 <= np.mean(values) <= interval.high + 1e-9


def test_bootstrap_interval_covers_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    covered = [
        interval.low <= 0.8 <= interval.high
        for interval in (mean_interval(rng.beta(4, 1, size=50).tolist()) for _ in range(60))
    ]
    assert 0.85 <= np.mean(covered) <= 1.0
