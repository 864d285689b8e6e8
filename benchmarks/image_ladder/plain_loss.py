"""The drifting loss written down plainly, with weights on attraction and repulsion that break its anti-symmetry.

With both weights 1 it is the released loss (a test compares it with `drift_policy.drift.drift_loss`). The paper's first
ablation multiplies V+ or V-; nothing in the library can, because a field that is not anti-symmetric does not vanish
where both distributions agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from drift_policy.drift import DEFAULT_TEMPERATURES, DriftInfo
from image_gen.training.drift_objective import LossOfFeatures, drifting_loss


@dataclass
class PlainDriftLoss:
    """The plain loss, in the place of `drift_policy.drift.drift_loss`."""

    attraction: float = 1.0  # weight of the field towards positives
    repulsion: float = 1.0  # weight of the field away from generated samples and negatives

    def __call__(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        *,
        weight_neg: Tensor | None = None,
        temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
        affinity_floor: float = 1e-6,
        num_features: int = 1,
    ) -> tuple[Tensor, DriftInfo]:
        """Return the loss of each of B kernel problems, [B], one feature after the other.

        Args:
            gen: [B, G, S].
            pos: [B, P, S].
            neg: [B, N, S]; absent: none.
            weight_neg: [B, N]; absent: 1.
            temperatures: kernel widths relative to the mean distance.
            affinity_floor: lower clip of the product of both softmaxes.
            num_features: F, features with a scale and forces of their own; each has B / F of the problems, in a row.
        """
        neg = gen[:, :0] if neg is None else neg
        weight_neg = torch.ones_like(neg[..., 0]) if weight_neg is None else weight_neg
        gens, poss, negs, weights = (tensor.chunk(num_features) for tensor in (gen, pos, neg, weight_neg))
        features = zip(gens, poss, negs, weights, strict=True)
        found = [self._of_feature(g, p, n, weight, temperatures, affinity_floor) for g, p, n, weight in features]
        scale = torch.stack([scale for _, scale, _ in found])
        force_sq = {t: torch.stack([forces[t] for _, _, forces in found]) for t in temperatures}
        return torch.cat([loss for loss, _, _ in found]), DriftInfo(scale=scale, force_sq=force_sq)

    def _of_feature(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor,
        weight_neg: Tensor,
        temperatures: Sequence[float],
        affinity_floor: float,
    ) -> tuple[Tensor, Tensor, dict[float, Tensor]]:
        """Return the losses of the problems of one feature, its scale, and its mean squared force by temperature."""
        with torch.no_grad(), torch.autocast(gen.device.type, enabled=False):  # in float32, as the library's
            targets = torch.cat([gen, neg, pos], dim=1)  # [B, M, S]
            weights = torch.cat([torch.ones_like(gen[..., 0]), weight_neg, torch.ones_like(pos[..., 0])], dim=1)
            squares = gen.square().sum(2, keepdim=True) + targets.square().sum(2).unsqueeze(1)
            distances = (squares - 2 * gen @ targets.transpose(1, 2)).clamp(min=1e-8).sqrt()  # [B, G, M]
            scale = (distances * weights.unsqueeze(1)).mean() / weights.mean()
            unit = (scale / gen.shape[2] ** 0.5).clamp(min=1e-3)
            samples, targets = gen / unit, targets / unit
            distances = distances / scale.clamp(min=1e-3)
            distances = distances + 100 * torch.eye(gen.shape[1], targets.shape[1], device=gen.device)
            field, forces = torch.zeros_like(samples), {}
            for temperature in temperatures:
                logits = -distances / temperature
                affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=affinity_floor).sqrt()
                affinity = affinity * weights.unsqueeze(1)
                minus, plus = affinity.split([gen.shape[1] + neg.shape[1], pos.shape[1]], dim=2)
                away, towards = minus * plus.sum(2, keepdim=True), plus * minus.sum(2, keepdim=True)
                coefficients = torch.cat([-self.repulsion * away, self.attraction * towards], dim=2)
                force = coefficients @ targets - coefficients.sum(2, keepdim=True) * samples
                forces[temperature] = force.square().mean()
                field = field + force / forces[temperature].clamp(min=1e-8).sqrt()
            goal = samples + field
        return (gen / unit - goal).square().mean(dim=(1, 2)), scale, forces


def plain_loss_of_features(attraction: float = 1.0, repulsion: float = 1.0) -> LossOfFeatures:
    """Return the sum over features of the plain loss, in the place of `drifting_loss`; see `PlainDriftLoss`."""
    return partial(drifting_loss, kernel_loss=PlainDriftLoss(attraction, repulsion))
