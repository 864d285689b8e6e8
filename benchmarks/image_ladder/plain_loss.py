"""The drifting loss written down plainly, with weights on attraction and repulsion that break its anti-symmetry.

With both weights 1 it is the released loss (a test compares it with `drift_policy.drift.drift_loss`). The paper's first
ablation multiplies V+ or V-; nothing in the library can, because a field that is not anti-symmetric does not vanish
where both distributions agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from drift_policy.drift import DriftInfo
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_loss import INPUT_FEATURE, FeatureLoss, TargetFeatures, guidance_weights
from image_gen.training.config import DriftConfig


def plain_drift_loss(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor,
    weight_neg: Tensor,
    temperatures: Sequence[float],
    affinity_floor: float,
    attraction: float = 1.0,
    repulsion: float = 1.0,
) -> tuple[Tensor, DriftInfo]:
    """Return the mean loss of B kernel problems, a scalar.

    Args:
        gen: [B, G, S].
        pos: [B, P, S].
        neg: [B, N, S]; N may be 0.
        weight_neg: [B, N].
        temperatures: kernel widths relative to the mean distance.
        affinity_floor: lower clip of the product of both softmaxes.
        attraction: weight of the field towards positives.
        repulsion: weight of the field away from generated samples and negatives.
    """
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
            affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=affinity_floor).sqrt() * weights.unsqueeze(1)
            minus, plus = affinity.split([gen.shape[1] + neg.shape[1], pos.shape[1]], dim=2)
            away, towards = minus * plus.sum(2, keepdim=True), plus * minus.sum(2, keepdim=True)
            coefficients = torch.cat([-repulsion * away, attraction * towards], dim=2)
            force = coefficients @ targets - coefficients.sum(2, keepdim=True) * samples
            forces[temperature] = force.square().mean()
            field = field + force / forces[temperature].clamp(min=1e-8).sqrt()
        goal = samples + field
    loss = (gen / unit - goal).square().mean()
    return loss, DriftInfo(scale=scale, force_sq=forces)


@dataclass
class PlainLossOfFeatures:
    """The sum over features of the plain loss, in the place of `image_gen.training.drift_objective.drifting_loss`."""

    attraction: float = 1.0
    repulsion: float = 1.0

    def __call__(
        self,
        features: FeatureExtractor,
        gen: Tensor,
        targets: TargetFeatures,
        cfg_scale: Tensor | None,
        config: DriftConfig,
        compare_input: bool,
    ) -> FeatureLoss:
        """Return the loss of generated images [B, G, C, H, W]."""
        batch, samples = gen.shape[:2]
        images = gen.flatten(0, 1)
        found = features.features(images) | {INPUT_FEATURE: images.flatten(1).unsqueeze(1)}
        terms, infos, total = {}, {}, torch.zeros((), device=gen.device)
        for name, value in found.items():
            if name == INPUT_FEATURE and not compare_input:
                continue
            pos = targets.pos[name]
            neg = pos[:, :0] if targets.neg is None else targets.neg[name]
            weight = torch.zeros(batch, 0, device=gen.device)
            if cfg_scale is not None:
                weight = guidance_weights(cfg_scale, samples, neg.shape[1])
            loss, infos[name] = plain_drift_loss(
                _fold(value.unflatten(0, (batch, samples))),
                _fold(pos),
                _fold(neg),
                weight.repeat_interleave(pos.shape[2], dim=0),
                config.temperatures,
                config.affinity_floor,
                self.attraction,
                self.repulsion,
            )
            terms[name] = loss.detach()
            total = total + loss
        return FeatureLoss(total, terms, infos)


def _fold(features: Tensor) -> Tensor:
    return rearrange(features, "b n l c -> (b l) n c").float()
