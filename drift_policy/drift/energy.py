"""Drifting with the kernel of the energy distance: a field that one demonstration per observation estimates unbiased.

With k(x, y) = 1 / |y - x| in place of the normalised affinities, the field of Eq. 3,

    V(x) = E_pos[(y - x) / |y - x|] - E_neg[(y - x) / |y - x|],

is still attraction minus repulsion, and still vanishes where both sets are equally distributed. It is minus the
gradient of the energy distance (Szekely and Rizzo 2013), whose sample version, the energy score, is a strictly proper
scoring rule (Gneiting and Raftery 2007): only the true distribution minimises it, even if every observation was seen
once. The affinities of the paper are divided by sums over the positives, so that a positive alone tells nothing of the
others.

Shape letters: B kernel problems, G generated samples, P positives, S flattened sample size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from drift_policy.drift.validation import check_samples, check_weights

# Distances are taken between entries, not by the Gram matrix: samples of one observation are close to each other.
_EXACT = "donot_use_mm_for_euclid_dist"


class EnergyInfo(NamedTuple):
    """What the loss consists of, averaged over the problems: scalars without gradient, in units of root mean square."""

    attraction: Tensor  # mean distance between samples and positives
    repulsion: Tensor  # mean distance between different samples


def energy_loss(gen: Tensor, pos: Tensor, *, weight_pos: Tensor | None = None) -> tuple[Tensor, EnergyInfo]:
    """Return the energy score of the samples of B separate problems; its gradient is the drifting field above.

    Unlike the value of `drift_loss`, this value falls during training and can be compared between runs.

    Args:
        gen: generated samples, [B, G, S] with G of at least two; receives the gradient.
        pos: samples of the target distribution, [B, P, S]; one is enough.
        weight_pos: weights of `pos` in the mean attraction, [B, P], of which the ratios count; equal if absent. A
            problem whose weights are all zero has no attraction.

    Returns:
        mean |gen - pos| - mean |gen - gen'| / 2 of each problem, [B], divided by sqrt(S), in the precision of `gen`,
        but at least float32; and an `EnergyInfo`.

    Raises:
        ValueError: a wrong shape, fewer than two generated samples, a non-finite entry, or a negative weight; names the
            argument.
    """
    check_samples("gen", gen)
    check_samples("pos", pos, like=gen)
    if weight_pos is not None:
        check_weights("weight_pos", weight_pos, pos)
    samples = gen.shape[1]
    if samples < 2:
        raise ValueError("gen must hold at least two samples of every problem: without repulsion all of them coincide.")
    with torch.autocast(gen.device.type, enabled=False):
        gen = gen.to(torch.promote_types(gen.dtype, torch.float32))
        unit = gen.shape[2] ** 0.5
        distances = torch.cdist(gen, pos.to(gen.dtype), compute_mode=_EXACT)
        attraction = _mean(distances, None if weight_pos is None else weight_pos.to(gen.dtype)) / unit
        # Distances of samples to themselves are zero, and so is their gradient.
        pairs = torch.cdist(gen, gen, compute_mode=_EXACT).sum(dim=(1, 2)) / (samples * (samples - 1))
        repulsion = pairs / unit
    info = EnergyInfo(attraction.detach().mean(), repulsion.detach().mean())
    return attraction - repulsion / 2, info


def _mean(distances: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of distances [B, G, P] for each problem, with weights [B, P] of its positives: [B]."""
    if weights is None:
        return distances.mean(dim=(1, 2))
    mean_weight = weights.mean(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return (distances * weights.unsqueeze(1)).mean(dim=(1, 2)) / mean_weight
