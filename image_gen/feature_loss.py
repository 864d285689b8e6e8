"""The drifting loss of a generated batch in the features of a frozen encoder (Eq. 13 and 14 of arXiv 2602.04770).

Every feature is one loss: its positions are folded into the batch axis, so that each class and position is a kernel
problem of its own, while scale and force norms run over all of them. Losses of one feature are averaged, and features
are summed. Features of one shape are computed in one call, since small ones cost the launch of their kernels.

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
# Features share a call up to so many numbers in its largest tensors, which bounds its memory: larger ones fill a device
# alone. On a CPU the numbers shall also stay in its cache.
_MOST_NUMBERS, _MOST_ON_CPU = 2**27, 2**20


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
        num_features: int = 1,
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
    call this with the same features and as many classes and samples.

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
            `targets` differ, in name or in shape.
    """
    batch, samples = gen.shape[:2]
    images = gen.flatten(0, 1)
    found = features(images) | {INPUT_FEATURE: images.flatten(1).unsqueeze(1)}
    names = [name for name in found if select is None or select(name)]
    _check_features(found, names, targets, cfg_scale)

    part_losses: dict[str, Tensor] = {}
    infos: dict[str, DriftInfo] = {}
    shapes = {name: _Shape.of(found[name], targets, name, batch) for name in names}
    for part in _parts(shapes, len(temperatures), _MOST_ON_CPU if gen.is_cpu else _MOST_NUMBERS):
        problems = _joined(found, targets, part, batch)
        weight = None
        if problems.neg is not None and cfg_scale is not None:
            weight = guidance_weights(cfg_scale, samples, problems.neg.shape[1])
            weight = weight.repeat_interleave(shapes[part[0]].locations, dim=0).repeat(len(part), 1)
        losses, info = kernel_loss(
            problems.gen,
            problems.pos,
            problems.neg,
            weight_neg=weight,
            temperatures=temperatures,
            affinity_floor=affinity_floor,
            num_features=len(part),
        )
        means = losses.reshape(len(part), -1).mean(dim=1)
        part_losses |= dict(zip(part, means, strict=True))
        infos |= {name: _of_feature(info, index) for index, name in enumerate(part)}
    total = torch.stack([part_losses[name] for name in names]).sum()
    return FeatureLoss(
        total, {name: part_losses[name].detach() for name in names}, {name: infos[name] for name in names}
    )


def _check_features(found: Features, names: list[str], targets: TargetFeatures, cfg_scale: Tensor | None) -> None:
    if not names or found.keys() != targets.pos.keys():
        raise ValueError(
            f"The encoder gives the features {sorted(found)}, the targets hold {sorted(targets.pos)}, and {len(names)} "
            "are selected: use one encoder for both, and select at least one feature."
        )
    if targets.neg is not None and cfg_scale is None:
        raise ValueError("cfg_scale is missing: the weight of unconditional negatives follows from it.")


class _Shape(NamedTuple):
    """The sizes of a feature's kernel problems; features of one shape may share a call."""

    classes: int  # B
    locations: int  # L; each of a class is a problem of its own
    channels: int  # C
    samples: int  # G
    targets: int  # M = G + N + P

    @classmethod
    def of(cls, gen: Tensor, targets: TargetFeatures, name: str, batch: int) -> _Shape:
        """Read it off the generated samples [B G, L, C] and the targets of a feature.

        Raises:
            ValueError: the targets have other locations or channels.
        """
        pos, neg = targets.pos[name], None if targets.neg is None else targets.neg[name]
        for kind, value in (("pos", pos), ("neg", neg)):
            if value is not None and value.shape[2:] != gen.shape[1:]:
                raise ValueError(
                    f"The feature {name} of {kind} has locations and channels {list(value.shape[2:])}, that of gen "
                    f"{list(gen.shape[1:])}: use images of one size."
                )
        samples = len(gen) // batch
        others = pos.shape[1] + (0 if neg is None else neg.shape[1])
        return cls(batch, gen.shape[1], gen.shape[2], samples, samples + others)

    def numbers(self, num_temperatures: int) -> int:
        """Return the numbers in the largest tensors of a call: affinities, or points and forces."""
        affinities = num_temperatures * self.samples * self.targets
        points_and_forces = (2 * self.targets + 3 * num_temperatures * self.samples) * self.channels
        return self.classes * self.locations * max(affinities, points_and_forces)


class _Problems(NamedTuple):
    """The kernel problems of one or several features, one after the other: locations are folded into the batch."""

    gen: Tensor  # [F B L, G, C]
    pos: Tensor  # [F B L, P, C]
    neg: Tensor | None  # [F B L, N, C]


def _parts(shapes: dict[str, _Shape], num_temperatures: int, most: int) -> list[list[str]]:
    """Return the features that share a call: of one shape, and not too large together."""
    by_shape: dict[_Shape, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    parts = []
    for shape, names in by_shape.items():
        size = max(1, most // shape.numbers(num_temperatures))
        parts += [names[start : start + size] for start in range(0, len(names), size)]
    return parts


def _joined(found: Features, targets: TargetFeatures, names: list[str], batch: int) -> _Problems:
    gen = [found[name].unflatten(0, (batch, -1)) for name in names]
    pos = [targets.pos[name] for name in names]
    neg = None if targets.neg is None else [targets.neg[name] for name in names]
    return _Problems(_folded(gen), _folded(pos), None if neg is None else _folded(neg))


def _folded(features: list[Tensor]) -> Tensor:
    """Return [B, n, L, C] of each of F features as [F B L, n, C]; one copy joins and transposes them."""
    views = [rearrange(feature, "b n l c -> b l n c") for feature in features]
    joined = views[0] if len(views) == 1 else torch.cat(views)
    return joined.flatten(0, 1).float()


def _of_feature(info: DriftInfo, index: int) -> DriftInfo:
    """Return the entries of one of the features of a call; those of a single one are scalars."""
    force_sq = {temperature: value.reshape(-1)[index] for temperature, value in info["force_sq"].items()}
    return DriftInfo(scale=info["scale"].reshape(-1)[index], force_sq=force_sq)
