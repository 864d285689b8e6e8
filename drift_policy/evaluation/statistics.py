"""Means and success rates with 95 % intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
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

    def to_mapping(self) -> dict[str, float]:
        """Return the four numbers by name."""
        return asdict(self)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values` with its bootstrap percentile interval (fixed seed).

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


def success_interval(successes: Sequence[bool]) -> Interval:
    """Return the success rate with its Wilson interval."""
    count, total = int(np.sum(successes)), len(successes)
    bounds = binomtest(count, total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Interval(count / total, float(bounds.low), float(bounds.high), total)
