"""Intervals against known values and their coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_policy.evaluation.statistics import difference_interval, mean_interval, success_interval


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
    assert (mean_interval([0.5] * 7).low, mean_interval([0.5] * 7).high) == (0.5, 0.5)


def test_one_episode_claims_no_interval() -> None:
    assert mean_interval([0.5]).span(".3f") == "one episode: none"
    assert mean_interval([0.5, 0.5]).span(".3f") == "0.500 to 0.500"
    assert success_interval([True]).span(".2f") == "0.21 to 1.00"  # Wilson's is one


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


def test_intervals_are_those_of_95_percent_and_repeat() -> None:
    values = np.random.default_rng(0).normal(size=400)
    width = 2 * 1.96 * values.std() / 20
    interval = mean_interval(values.tolist())
    assert interval.high - interval.low == pytest.approx(width, rel=0.05)
    assert mean_interval(values.tolist()) == interval
    difference = difference_interval(values[None], np.zeros((1, 400)))  # one seed each: start states alone
    assert difference.high - difference.low == pytest.approx(width, rel=0.05)
    assert difference.mean == pytest.approx(values.mean())


def test_differences_cover_the_true_one_though_seeds_and_start_states_differ() -> None:
    rng = np.random.default_rng(0)
    covered, paired_width, seeds = [], [], []
    for _ in range(60):
        hard = rng.normal(0, 0.2, 80)  # start states, shared
        quality = rng.normal(0, 0.05, (2, 8, 1))  # training seeds
        first, second = hard + quality + rng.normal(0, 0.1, (2, 8, 80)) + np.array([0.1, 0.0]).reshape(2, 1, 1)
        interval = difference_interval(first, second)
        assert interval.n == 8 * 80, "episodes"
        covered.append(interval.low <= 0.1 <= interval.high)
        paired_width.append(interval.high - interval.low)
        seeds.append(first.mean() - second.mean())
    assert 0.8 <= np.mean(covered) <= 1.0
    # Start states cancel; what remains is that of the seeds.
    assert np.mean(paired_width) == pytest.approx(2 * 1.96 * np.std(seeds), rel=0.25)


def test_a_difference_needs_the_same_start_states() -> None:
    with pytest.raises(ValueError, match="80 start states cannot be compared with 50"):
        difference_interval(np.zeros((3, 80)), np.zeros((3, 50)))
