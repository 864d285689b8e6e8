"""What temperatures of the drifting field are good for: an objective that can teach them.

The drifting loss cannot: every temperature's force is normalised, so that its value is nearly constant, and its goal is
not differentiated. Instead, samples that have drifted one step should forecast the demonstration well. Forecasts are
judged by the energy score, which is strictly proper (Gneiting and Raftery 2007). But in behaviour cloning the one
demonstration that judges the drifted samples is also the one that attracted them, and the score would praise whatever
runs after it: wide kernels, which move all samples together. This optimism is the expected difference between the score
of an independent demonstration and that of the attracting one. It is estimated by a parametric bootstrap (Efron 2004,
"The estimation of prediction error: covariance penalties and cross-validation"): one of the samples takes the
demonstration's place, and another one judges. Once samples are distributed as the demonstrations are, this is exact.
"""

import torch
from torch import Tensor

from drift_policy.drift.energy import energy_loss
from drift_policy.drift.loss import Scope, drifted_samples

MIN_SAMPLES = 4  # two stand for demonstrations, two repel each other


def temperature_score(
    gen: Tensor, pos: Tensor, temperatures: Tensor, *, affinity_floor: float = 1e-6, scope: Scope = "batch"
) -> Tensor:
    """Return an estimate of how badly the drifted samples forecast demonstrations that did not attract them.

    Args:
        gen: generated samples, [B, G, S] with G of at least 4, exchangeable; without gradient.
        pos: the demonstration of each problem, [B, 1, S].
        temperatures: kernel widths relative to the mean distance, [R]; the only argument that receives a gradient.
        affinity_floor: as in `drift_loss`.
        scope: as in `drift_loss`.

    Returns:
        The energy score, divided by sqrt(S), and its optimism, in sum, [B]; lower is better.

    Raises:
        ValueError: as `drift_loss` does, or fewer than four samples.
    """
    if gen.ndim == 3 and gen.shape[1] < MIN_SAMPLES:
        raise ValueError(f"gen must hold at least {MIN_SAMPLES} samples of every problem, but holds {gen.shape[1]}.")
    score, _ = energy_loss(drifted_samples(gen, pos, temperatures, affinity_floor=affinity_floor, scope=scope), pos)
    attractor, judge, rest = gen.detach().split([1, 1, gen.shape[1] - 2], dim=1)
    drifted = drifted_samples(rest, attractor, temperatures, affinity_floor=affinity_floor, scope=scope)
    return score + (_mean_distance(drifted, judge) - _mean_distance(drifted, attractor)) / gen.shape[2] ** 0.5


def _mean_distance(samples: Tensor, point: Tensor) -> Tensor:
    """Return the mean distance of samples [B, G, S] to a point [B, 1, S]: [B]."""
    return torch.linalg.vector_norm(samples - point, dim=2).mean(dim=1)
