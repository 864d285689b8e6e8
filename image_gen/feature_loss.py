"""The drifting loss of a generated batch in the features of a frozen encoder (Eq. 13 and 14 of arXiv 2602.04770).

Every feature is one loss: its positions are folded into the batch axis, so that each class and position is a kernel
problem of its own, while scale and force norms run over all of them. Losses of one feature are averaged, and features
are summed.

Shape letters: B classes, G generated samples, P positives and N unconditional negatives of each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

from drift_policy.drift import DEFAULT_TEMPERATURES, DriftInfo, drift_loss
from image_gen.feature_maps import Features

INPUT_FEATURE = "global"  # the flattened images or latents themselves


class KernelLoss(Protocol):
    """The signature of `drift_policy.drift.drift_loss`, which a compiled form of it has too."""

    def __call__(
        self,
        gen: Tensor,
        pos: Tensor,
        neg: Tensor | None = None,
        *,
        weight_neg: Tensor | None = None,
        temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
        affinity_floor: float = 1e-6,
    ) -> tuple[Tensor, DriftInfo]:
        """Return the loss of each of B kernel problems, [B]."""


def compiled_drift_loss() -> KernelLoss:
    """Return `drift_loss` compiled for any shape: a few compilations serve all features.

    The kernels that it fuses pass over the matrices of affinities fewer times.
    """
    return torch.compile(drift_loss, dynamic=True)


class FeatureLoss(NamedTuple):
    """The sum over features with its terms; only `total` carries a gradient."""

    total: Tensor  # scalar
    terms: dict[str, Tensor]  # loss of each feature, scalars
    infos: dict[str, DriftInfo]  # scale and forces of each feature: these measure progress, the losses do not


class TargetFeatures(NamedTuple):
    """Features of real images, gradient-free: computed once a step, however many generated parts they serve."""

    pos: Features  # name -> [B, P, locations, channels]
    neg: Features | None  # name -> [B, N, locations, channels]


def guidance_weights(cfg_scale: Tensor, num_generated: int, num_unconditional: int) -> Tensor:
    """Return the weight of each unconditional negative, [B, N] (appendix A.7).

    With it, real images of random classes make up the share (alpha - 1) / alpha of all negatives.

    Args:
        cfg_scale: guidance scale alpha of each class, at least 1, [B].
        num_generated: G.
        num_unconditional: N.
    """
    weight = (cfg_scale - 1) * (num_generated - 1) / max(num_unconditional, 1)
    return weight.unsqueeze(1).expand(-1, num_unconditional)


def target_features(
    features: Callable[[Tensor], Features],
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> TargetFeatures:
    """Compute the features of positives and unconditional negatives together, without gradient.

    Args:
        features: frozen encoder, images [n, C, H, W] -> name -> [n, locations, channels].
        pos: real images or latents of each class, [B, P, C, H, W].
        neg: real images or latents of any class, [B, N, C, H, W].
        chunk_size: images that go through the encoder at once; all if absent.
    """
    batches = [pos] if neg is None or neg.shape[1] == 0 else [pos, neg]
    images = torch.cat([batch.flatten(0, 1) for batch in batches])
    with torch.no_grad():
        parts = [
            features(part) | {INPUT_FEATURE: part.flatten(1).unsqueeze(1)}
            for part in images.split(chunk_size or len(images))
        ]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    split: list[Features] = [{}, {}]
    for name, value in joined.items():
        rows = value.split([batch.shape[0] * batch.shape[1] for batch in batches])
        for target, batch, row in zip(split, batches, rows, strict=False):
            target[name] = row.unflatten(0, batch.shape[:2])
    return TargetFeatures(split[0], split[1] if len(batches) == 2 else None)


def feature_drift_loss(
    features: Callable[[Tensor], Features],
    gen: Tensor,
    targets: TargetFeatures,
    cfg_scale: Tensor | None = None,
    *,
    temperatures: Sequence[float] = DEFAULT_TEMPERATURES,
    affinity_floor: float = 1e-6,
    select: Callable[[str], bool] | None = None,
    kernel_loss: KernelLoss = drift_loss,
) -> FeatureLoss:
    """Return the drifting loss of generated images, summed over features.

    With `torch.distributed` initialised, the statistics of each feature run over all processes, so all of them must
    call this with the same features.

    Args:
        features: the encoder that made `targets`; the gradient flows through it.
        gen: generated images or latents, [B, G, C, H, W].
        targets: features of the real images.
        cfg_scale: guidance scale of each class, [B]; needed with unconditional negatives.
        temperatures: see `drift_policy.drift.drift_loss`.
        affinity_floor: see `drift_policy.drift.drift_loss`.
        select: which features count, by name (`global` is the input itself); all if absent.
        kernel_loss: `drift_loss`, or its compiled form.

    Raises:
        ValueError: unconditional negatives without guidance scale, no feature is left, or the features of `gen` and
            `targets` differ.
    """
    batch, samples = gen.shape[:2]
    images = gen.flatten(0, 1)
    found = features(images) | {INPUT_FEATURE: images.flatten(1).unsqueeze(1)}
    names = [name for name in found if select is None or select(name)]
    if not names or found.keys() != targets.pos.keys():
        raise ValueError(
            f"The encoder gives the features {sorted(found)}, the targets hold {sorted(targets.pos)}, and {len(names)} "
            "are selected: use one encoder for both, and select at least one feature."
        )
    if targets.neg is not None and cfg_scale is None:
        raise ValueError("cfg_scale is missing: the weight of unconditional negatives follows from it.")

    terms, infos = {}, {}
    total = gen.new_zeros((), dtype=torch.float32)
    for name in names:
        neg = None if targets.neg is None else targets.neg[name]
        weight = None
        if neg is not None and cfg_scale is not None:
            locations = neg.shape[2]
            weight = guidance_weights(cfg_scale, samples, neg.shape[1]).repeat_interleave(locations, dim=0)
        losses, infos[name] = kernel_loss(
            _fold_locations(found[name].unflatten(0, (batch, samples))),
            _fold_locations(targets.pos[name]),
            None if neg is None else _fold_locations(neg),
            weight_neg=weight,
            temperatures=temperatures,
            affinity_floor=affinity_floor,
        )
        loss = losses.mean()
        terms[name] = loss.detach()
        total = total + loss
    return FeatureLoss(total, terms, infos)


def _fold_locations(features: Tensor) -> Tensor:
    return rearrange(features, "b n l c -> (b l) n c").float()
