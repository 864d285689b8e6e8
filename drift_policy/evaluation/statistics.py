"""Means and success rates with 95 % intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over episodes with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int  # episodes

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"

    def span(self, form: str) -> str:
        """Return both ends in a number format, or that one episode has no interval: its spread is unknown."""
        return (
            "one episode: none" if self.n == 1 and self.low == self.high else f"{self.low:{form}} to {self.high:{form}}"
        )

    def to_mapping(self) -> dict[str, float]:
        """Return the four numbers by name."""
        return asdict(self)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values` with its bootstrap percentile interval (fixed seed).

    Where all values are equal, as a single one is, the interval is that value.

    Scores of episodes are far from normal (many perfect ones, a few failures), hence no t interval.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if np.ptp(array) == 0:  # the bootstrap is undefined without variation
        return Interval(mean, mean, mean, len(array))
    result = bootstrap(
        (array,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0)
    )
    bounds = result.confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), len(array))


def difference_interval(values: NDArray[np.float64], reference: NDArray[np.float64]) -> Interval:
    """Return how much higher `values` are than `reference` on average, with its bootstrap percentile interval.

    Training seeds of both are drawn anew, and the start states, which both share, together: the interval covers that
    other seeds and other start states would have given other numbers.

    Args:
        values: [seeds, start states], for example successes.
        reference: [other seeds, the same start states].

    Raises:
        ValueError: other start states.
    """
    if values.shape[1] != reference.shape[1]:
        raise ValueError(f"{values.shape[1]} start states cannot be compared with {reference.shape[1]}.")
    rng, resamples = np.random.default_rng(0), 10_000
    states = values.shape[1]
    picked = rng.multinomial(states, np.full(states, 1 / states), resamples) / states  # weights [resamples, states]

    def means(runs: NDArray[np.float64]) -> NDArray[np.float64]:
        seeds = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), resamples) / len(runs)
        resampled: NDArray[np.float64] = np.einsum("rs,se,re->r", seeds, runs, picked)
        return resampled

    low, high = np.quantile(means(values) - means(reference), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean() - reference.mean()), float(low), float(high), values.size)


def success_interval(successes: Sequence[bool]) -> Interval:
    """Return the success rate with its Wilson interval."""
    count, total = int(np.sum(successes)), len(successes)
    bounds = binomtest(count, total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(count / total, float(bounds.low), float(bounds.high), total)
