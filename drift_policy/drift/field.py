"""The drifting field as the paper prints it (Algorithm 2), for one kernel problem.

Shape letters: N samples of the generator, Np positives, Nn negatives, D sample size.
"""

import torch
from torch import Tensor

from drift_policy.drift.validation import check_matrix, check_temperature

# Added to the distance of a sample to itself, so that its own affinity vanishes (Algorithm 2, line 3).
_SELF_DISTANCE = 1e6
# Distances between inputs beyond this magnitude are taken in a larger unit: their squares would overflow float32.
_LARGEST_MAGNITUDE = 1e15


def drift_field(
    x: Tensor,
    y_pos: Tensor,
    y_neg: Tensor,
    temperature: float,
    mask_self: bool = True,
) -> Tensor:
    """Return the drifting field V(x) of Algorithm 2 (Eq. 8 to 12).

    Every sample is pulled towards the positives and pushed away from the negatives with Laplace-type
    affinities exp(-distance / temperature), normalised over both axes. Exchanging `y_pos` and `y_neg`
    (with `mask_self=False`) changes only the sign of the field, so it vanishes where the sets are equal.

    Args:
        x: generated samples, [N, D].
        y_pos: samples of the target distribution, [Np, D].
        y_neg: samples of the generator's distribution, [Nn, D]; usually `x` itself.
        temperature: kernel width in the unit of the distance, greater than zero.
        mask_self: leave pair (x_i, y_neg_i) out, as needed when `y_neg` is (or begins with) `x`.

    Returns:
        The field at every x, [N, D], in the unit of `x`, without gradient. Half precision is computed in float32.

    Raises:
        ValueError: a wrong shape, a non-finite entry or a temperature that is not positive; names the argument.
    """
    check_matrix("x", x)
    check_matrix("y_pos", y_pos, columns=x.shape[1])
    check_matrix("y_neg", y_neg, columns=x.shape[1])
    check_temperature("temperature", temperature)

    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        samples, positives, negatives = (t.to(dtype) for t in (x, y_pos, y_neg))
        # Distances do not depend on the origin; centring keeps their float32 error small far away from it.
        centre = samples.mean(dim=0)
        samples, positives, negatives = samples - centre, positives - centre, negatives - centre

        mode = "donot_use_mm_for_euclid_dist"
        largest = torch.cat([samples, positives, negatives]).abs().amax()
        unit = (largest / _LARGEST_MAGNITUDE).clamp(min=1.0)
        dist_pos = torch.cdist(samples / unit, positives / unit, compute_mode=mode) * unit
        dist_neg = torch.cdist(samples / unit, negatives / unit, compute_mode=mode) * unit
        if mask_self:
            dist_neg.diagonal().add_(_SELF_DISTANCE)

        logits = -torch.cat([dist_pos, dist_neg], dim=1) / temperature
        affinity = (logits.softmax(dim=1) * logits.softmax(dim=0)).sqrt()
        affinity_pos, affinity_neg = affinity.split([len(positives), len(negatives)], dim=1)

        weight_pos = affinity_pos * affinity_neg.sum(dim=1, keepdim=True)
        weight_neg = affinity_neg * affinity_pos.sum(dim=1, keepdim=True)
        return (weight_pos @ positives - weight_neg @ negatives).to(x.dtype)
