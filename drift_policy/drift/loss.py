"""The drifting loss for batches of kernel problems, equal to the authors' released loss with default arguments.

Shape letters: B kernel problems, G generated samples, P positives, N extra negatives, M = G + N + P targets,
S flattened sample size, R temperatures, F features that the problems belong to (one for actions).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from drift_policy.drift.distributed import global_mean
from drift_policy.drift.validation import check_affinity_floor, check_samples, check_temperatures, check_weights

DEFAULT_TEMPERATURES = (0.02, 0.05, 0.2)
Scope = Literal["batch", "group"]

# Constants of the released implementation; the numbers are part of the published method.
_MIN_SQUARED_DISTANCE = 1e-8
_MIN_SCALE = 1e-3
_MIN_FORCE_SQ = 1e-8
_SELF_DISTANCE = 100.0
# Smallest affinity product of a field that is differentiated: the square root has no derivative at zero.
_DIFFERENTIABLE_FLOOR = 1e-30
# Inputs beyond this magnitude are computed in a smaller unit: their squares would overflow float32.
_LARGEST_MAGNITUDE = 1e6


class DriftInfo(TypedDict):
    """What to plot beside the loss, which is nearly constant by construction. No entry carries a gradient.

    Scalars; with several features a vector [F].
    """

    scale: Tensor
    """Mean weighted distance between samples and targets, in the unit of the samples."""
    force_sq: dict[float, Tensor]
    """Mean squared force before its normalisation, of every temperature (its position, if they are a tensor): this
    falls as the sets meet."""


class _Targets(NamedTuple):
    """Everything a sample is compared with, gradient-free: samples themselves, extra negatives, positives."""

    points: Tensor  # [B, M, S]
    weights: Tensor | None  # [B, M]; ones if absent
    num_negatives: int  # G + N; the remaining columns are positives


class _Settings(NamedTuple):
    """How the field is taken; see `drift_loss`."""

    temperatures: Tensor  # [R]
    affinity_floor: float
    scope: Scope
    num_features: int = 1


class _Field(NamedTuple):
    """The normalised force on every sample, and the coordinates it is given in: (gen - centre) / unit / input_scale."""

    samples: Tensor  # [B, G, S] in these coordinates
    force: Tensor  # [B, G, S] in these coordinates, summed over temperatures
    force_sq: Tensor  # [R, F]
    centre: Tensor  # [B, 1, S]
    unit: Tensor  # [B, 1, 1]
    input_scale: Tensor  # broadcastable to [B, 1, 1]
    scale: Tensor  # mean distance in `unit`


def drift_loss(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None = None,
    *,
    weight_gen: Tensor | None = None,
    weight_pos: Tensor | None = None,
    weight_neg: Tensor | None = None,
    temperatures: Sequence[float] | Tensor = DEFAULT_TEMPERATURES,
    affinity_floor: float = 1e-6,
    scope: Scope = "batch",
    num_features: int = 1,
) -> tuple[Tensor, DriftInfo]:
    """Return the drifting loss (Eq. 6 with the normalisations of appendix A.6) of B separate kernel problems.

    The value is nearly constant by construction, because every temperature's force is normalised to unit RMS:
    watch `info` and a task error instead. With `torch.distributed` initialised, the statistics of
    `scope="batch"` run over the batches of all processes.

    Args:
        gen: generated samples, [B, G, S]; the only argument that receives a gradient.
        pos: samples of the target distribution, [B, P, S].
        neg: extra negatives, [B, N, S] (the unconditional samples of classifier-free guidance).
        weight_gen: column weights of `gen` as negatives, [B, G]; ones if absent.
        weight_pos: column weights of `pos`, [B, P]; ones if absent.
        weight_neg: column weights of `neg`, [B, N]; ones if absent.
        temperatures: kernel widths relative to the mean distance; also a tensor [R], which receives no gradient.
        affinity_floor: lower clip of the product of both softmaxes. The released code uses 1e-6, which lets
            every far positive pull a little; 0 is the paper's formula, under which far positives do not pull.
        scope: "batch" takes one distance scale and one force norm over the batch (released code);
            "group" takes them for each of the B problems.
        num_features: F, of which each has B / F of the problems, one feature after the other: the statistics of
            `scope="batch"` are those of a feature. One call then computes what F calls would, by fewer kernels.

    Returns:
        The loss of each problem, [B], and a `DriftInfo`, both in the precision of `gen`, but at least float32.

    Raises:
        ValueError: a wrong shape, a non-finite entry, a bad temperature, floor, scope or number of features;
            names the argument. On an accelerator non-finite entries fail a device-side assertion, which does not stall
            training.
    """
    _validate(gen, pos, neg, weight_gen, weight_pos, weight_neg)
    _check_settings(temperatures, affinity_floor, scope)
    if num_features < 1 or gen.shape[0] % num_features:
        raise ValueError(f"num_features must divide the {gen.shape[0]} problems of gen, but is {num_features}.")
    with torch.autocast(gen.device.type, enabled=False):
        gen = gen.to(torch.promote_types(gen.dtype, torch.float32))
        with torch.no_grad():
            weights = (weight_gen, weight_pos, weight_neg)
            settings = _Settings(_as_tensor(temperatures, gen), affinity_floor, scope, num_features)
            field = _field(gen, pos, neg, weights, settings)
            goal = field.samples + field.force
        loss = ((gen - field.centre) / field.unit / field.input_scale - goal).square().mean(dim=(1, 2))

    names = range(len(temperatures)) if isinstance(temperatures, Tensor) else temperatures
    scale, force_sq = (field.scale * field.unit).reshape(num_features, -1).mean(dim=1), field.force_sq
    if num_features == 1:
        scale, force_sq = scale.squeeze(0), force_sq.squeeze(1)
    return loss, DriftInfo(scale=scale, force_sq=dict(zip(names, force_sq, strict=True)))


def drifted_samples(
    gen: Tensor, pos: Tensor, temperatures: Tensor, *, affinity_floor: float = 1e-6, scope: Scope = "batch"
) -> Tensor:
    """Return the samples after one step along the field of `drift_loss`; only `temperatures` receive a gradient.

    The step is the mean over temperatures of the normalised forces (their sum is what the loss regresses to): with
    `scope="batch"` and one temperature its root mean square over the batch is the mean distance.

    Args:
        gen: generated samples, [B, G, S].
        pos: samples of the target distribution, [B, P, S].
        temperatures: kernel widths relative to the mean distance, [R].
        affinity_floor: as in `drift_loss`; 0 is taken as the smallest number that has a derivative.
        scope: as in `drift_loss`.

    Returns:
        The moved samples, [B, G, S], in the precision of `gen`, but at least float32.

    Raises:
        ValueError: as `drift_loss` does.
    """
    _validate(gen, pos, None, None, None, None)
    _check_settings(temperatures, affinity_floor, scope)
    with torch.autocast(gen.device.type, enabled=False):
        gen = gen.detach().to(torch.promote_types(gen.dtype, torch.float32))
        floor = max(affinity_floor, _DIFFERENTIABLE_FLOOR)
        settings = _Settings(_as_tensor(temperatures, gen), floor, scope)
        field = _field(gen, pos.detach(), None, (None, None, None), settings)
        return gen + field.force / len(temperatures) * field.input_scale * field.unit


def _check_settings(temperatures: Sequence[float] | Tensor, affinity_floor: float, scope: str) -> None:
    check_temperatures("temperatures", temperatures)
    check_affinity_floor("affinity_floor", affinity_floor)
    if scope not in ("batch", "group"):
        raise ValueError(f"scope must be 'batch' or 'group', but is {scope!r}.")


def _as_tensor(temperatures: Sequence[float] | Tensor, gen: Tensor) -> Tensor:
    if isinstance(temperatures, Tensor):
        return temperatures.to(gen)
    return torch.tensor(temperatures, dtype=gen.dtype, device=gen.device)


def _field(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None],
    settings: _Settings,
) -> _Field:
    """Return the field at samples `gen`. It is independent of origin and unit; both keep float32 exact enough."""
    centre = gen.mean(dim=1, keepdim=True)
    targets = _gather_targets(gen, pos, neg, centre, weights)
    lowest, highest = targets.points.flatten(1).aminmax(dim=1)
    largest = torch.maximum(-lowest, highest).reshape(-1, 1, 1)
    unit = (largest / _LARGEST_MAGNITUDE).clamp(min=1.0)
    targets.points.div_(unit)
    samples = targets.points[:, : gen.shape[1]]
    distances = _distances(samples, targets.points)
    scale = _scale(distances, targets.weights, unit, settings)
    input_scale = (scale / gen.shape[2] ** 0.5).clamp(min=_MIN_SCALE / unit)
    forces = _forces(distances / scale.clamp(min=_MIN_SCALE / unit), targets, settings)
    force, force_sq = _normalised_force(forces, input_scale, settings)
    return _Field(samples / input_scale, force, force_sq, centre, unit, input_scale, scale)


def _validate(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    weight_gen: Tensor | None,
    weight_pos: Tensor | None,
    weight_neg: Tensor | None,
) -> None:
    check_samples("gen", gen)
    check_samples("pos", pos, like=gen)
    if neg is not None:
        check_samples("neg", neg, like=gen, allow_empty=True)
    if neg is None and weight_neg is not None:
        raise ValueError("weight_neg was given without neg: pass the extra negatives or leave the weights out.")
    for name, weights, samples in (
        ("weight_gen", weight_gen, gen),
        ("weight_pos", weight_pos, pos),
        ("weight_neg", weight_neg, neg),
    ):
        if weights is not None and samples is not None:
            check_weights(name, weights, samples)


def _gather_targets(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    centre: Tensor,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> _Targets:
    """Stack samples, extra negatives and positives to one [B, M, S] tensor relative to `centre`."""
    weight_gen, weight_pos, weight_neg = weights
    parts = [(gen, weight_gen)]
    if neg is not None:
        parts.append((neg.to(gen.dtype), weight_neg))
    parts.append((pos.to(gen.dtype), weight_pos))
    all_weights = None
    if any(weight is not None for _, weight in parts):
        all_weights = torch.cat([_or_ones(weight, points) for points, weight in parts], dim=1)
    return _Targets(
        points=torch.cat([points for points, _ in parts], dim=1).sub_(centre),
        weights=all_weights,
        num_negatives=sum(points.shape[1] for points, _ in parts[:-1]),
    )


def _or_ones(weight: Tensor | None, points: Tensor) -> Tensor:
    return points.new_ones(points.shape[:2]) if weight is None else weight.to(points.dtype)


def _distances(samples: Tensor, points: Tensor) -> Tensor:
    """Euclidean distances [B, G, M] by the Gram matrix, which needs no [B, G, M, S] intermediate."""
    squares_samples = samples.square().sum(dim=-1, keepdim=True)
    squares_points = points.square().sum(dim=-1).unsqueeze(1)
    squared = torch.baddbmm(squares_samples + squares_points, samples, points.transpose(1, 2), alpha=-2.0)
    return squared.clamp_(min=_MIN_SQUARED_DISTANCE).sqrt_()


def _scale(distances: Tensor, weights: Tensor | None, unit: Tensor, settings: _Settings) -> Tensor:
    """Weighted mean distance, broadcastable to [B, 1, 1]; self distances count, as in the released code."""
    # Of each problem, [B].
    distance, weight = distances.mean(dim=(1, 2)), torch.ones_like(unit.flatten())
    if weights is not None:
        distance, weight = (distances.mean(dim=1) * weights).mean(dim=1), weights.mean(dim=1)
    tiny = torch.finfo(torch.float32).tiny
    if settings.scope == "group":
        return (distance / weight.clamp(min=tiny)).reshape(-1, 1, 1)
    # Every problem computes in its own unit: average in the unit of the input.
    columns = (values.reshape(settings.num_features, -1).T for values in (distance * unit.flatten(), weight))
    mean_distance, mean_weight = global_mean(*columns, keep_last=True)  # [F]
    mean = mean_distance / mean_weight.clamp(min=tiny)
    return _of_each_problem(mean.unsqueeze(0), len(unit)).reshape(-1, 1, 1) / unit


def _of_each_problem(values: Tensor, num_problems: int) -> Tensor:
    """Repeat values of features [R, F] for their problems, [B, R, 1, 1]."""
    return values.T.repeat_interleave(num_problems // values.shape[1], dim=0)[:, :, None, None]


def _forces(distances: Tensor, targets: _Targets, settings: _Settings) -> Tensor:
    """Return the force of every temperature on every sample, [B, R, G, S], in the unit of the points.

    The distances, in units of their mean, are given away.
    """
    samples = targets.points[:, : distances.shape[1]]
    distances.diagonal(dim1=1, dim2=2).add_(_SELF_DISTANCE)
    logits = distances.unsqueeze(1) * -settings.temperatures.reciprocal().reshape(-1, 1, 1)  # [B, R, G, M]
    coefficients = _coefficients(logits, targets, settings.affinity_floor)
    # Temperatures are rows of one product, since a product of each would copy the points.
    force = (coefficients.flatten(1, 2) @ targets.points).unflatten(1, coefficients.shape[1:3])
    # The coefficients of a row add up to zero, so the second term only removes rounding error.
    return torch.addcmul(force, coefficients.sum(dim=3, keepdim=True), samples.unsqueeze(1), value=-1)


def _coefficients(logits: Tensor, targets: _Targets, affinity_floor: float) -> Tensor:
    """Return how strongly every target pulls (positives) or pushes (the others) a sample, [B, R, G, M]."""
    # Guidance weights act after both softmaxes.
    weights = None if targets.weights is None else targets.weights[:, None, None, :]
    sizes = [targets.num_negatives, logits.shape[3] - targets.num_negatives]
    rows, columns = logits.softmax(dim=3), logits.softmax(dim=2)
    if torch.is_grad_enabled():  # the backward pass needs what the lines below overwrite
        affinity = (rows * columns).clamp(min=affinity_floor).sqrt()
        negative, positive = (affinity if weights is None else affinity * weights).split(sizes, dim=3)
        pushes, pulls = negative.sum(dim=3, keepdim=True), positive.sum(dim=3, keepdim=True)
        return torch.cat([-negative * pulls, positive * pushes], dim=3)
    affinity = rows.mul_(columns).clamp_(min=affinity_floor).sqrt_()
    if weights is not None:
        affinity.mul_(weights)
    negative, positive = affinity.split(sizes, dim=3)
    pushes, pulls = negative.sum(dim=3, keepdim=True), positive.sum(dim=3, keepdim=True)
    negative.mul_(-pulls)
    positive.mul_(pushes)
    return affinity


def _normalised_force(forces: Tensor, input_scale: Tensor, settings: _Settings) -> tuple[Tensor, Tensor]:
    """Sum over temperatures of the unit-RMS force [B, G, S], and the mean squared force of each, [R, F].

    Both in units of the input scale, [B, 1, 1], where forces are in that of the points.
    """
    # The square of a tiny scale would be zero.
    of_problems = (forces.square().mean(dim=(2, 3)).sqrt() / input_scale.squeeze(2)).square()  # [B, R]
    by_feature = of_problems.reshape(settings.num_features, -1, forces.shape[1])  # [F, B / F, R]
    if settings.scope == "group":
        norm, force_sq = of_problems[:, :, None, None], by_feature.mean(dim=1).T
    else:
        (mean,) = global_mean(by_feature.transpose(0, 1).flatten(1), keep_last=True)  # [F R]
        force_sq = mean.reshape(settings.num_features, -1).T
        norm = _of_each_problem(force_sq, len(forces))
    return (forces / norm.clamp(min=_MIN_FORCE_SQ).sqrt()).sum(dim=1) / input_scale, force_sq
