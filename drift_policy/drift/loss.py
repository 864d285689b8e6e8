"""The drifting loss for batches of kernel problems, equal to the authors' released loss with default arguments.

Shape letters: B kernel problems, G generated samples, P positives, N extra negatives, M = G + N + P targets,
S flattened sample size, R temperatures, F features that the problems belong to (one for actions).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
# Inputs beyond this magnitude are computed in a larger unit: their squares would overflow.
_LARGEST_MAGNITUDE = {torch.float32: 1e6, torch.float64: 1e100}


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
    """The normalised force on every sample, in units of `input_scale`, and what the units are."""

    force: Tensor  # [B, G, S], summed over temperatures
    force_sq: Tensor  # [R, F]
    unit: Tensor  # [B, 1, 1], that of the computation
    input_scale: Tensor  # in `unit`, broadcastable to [B, 1, 1]
    scale: Tensor  # mean distance in `unit`


class _DistanceToGoal(torch.autograd.Function):
    """Mean squared distance of samples to where the field takes them (Eq. 6), [B].

    The goal is the samples plus the force, without gradient, so the distance is the force itself and the gradient minus
    twice the force: neither the samples nor the goal need be computed in units of the input scale.
    """

    @staticmethod
    def forward(context: Any, gen: Tensor, force: Tensor, input_scale: Tensor) -> Tensor:
        """Return it for samples [B, G, S] and forces [B, G, S] on them in units of `input_scale`, [B, 1, 1]."""
        context.save_for_backward(force, input_scale)
        return torch.linalg.vector_norm(force, dim=(1, 2)).square() / force[0].numel()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient to the samples, [B, G, S]."""
        force, input_scale = context.saved_tensors
        return force * (gradient.reshape(-1, 1, 1) * (-2 / force[0].numel()) / input_scale), None, None


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
    largest = _validate(gen, pos, neg, weight_gen, weight_pos, weight_neg)
    _check_settings(temperatures, affinity_floor, scope)
    if num_features < 1 or gen.shape[0] % num_features:
        raise ValueError(f"num_features must divide the {gen.shape[0]} problems of gen, but is {num_features}.")
    with torch.autocast(gen.device.type, enabled=False):
        gen = gen.to(torch.promote_types(gen.dtype, torch.float32))
        with torch.no_grad():
            weights = (weight_gen, weight_pos, weight_neg)
            settings = _Settings(_as_tensor(temperatures, gen), affinity_floor, scope, num_features)
            field = _field(gen, pos, neg, weights, largest, settings)
        loss = _DistanceToGoal.apply(gen, field.force, field.input_scale * field.unit)

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
    largest = _validate(gen, pos, None, None, None, None)
    _check_settings(temperatures, affinity_floor, scope)
    with torch.autocast(gen.device.type, enabled=False):
        gen = gen.detach().to(torch.promote_types(gen.dtype, torch.float32))
        floor = max(affinity_floor, _DIFFERENTIABLE_FLOOR)
        settings = _Settings(_as_tensor(temperatures, gen), floor, scope)
        field = _field(gen, pos.detach(), None, (None, None, None), largest, settings)
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
    largest: Tensor,
    settings: _Settings,
) -> _Field:
    """Return the field at samples `gen`. It is independent of origin and unit; both keep float32 exact enough."""
    # Nothing is farther than 2 * largest from the mean of the samples.
    unit = (largest.to(gen.dtype) / _LARGEST_MAGNITUDE[gen.dtype] * 2).clamp(min=1.0).reshape(-1, 1, 1)
    targets = _gather_targets(gen, pos, neg, weights, unit)
    distances = _distances(gen.shape[1], targets.points)
    scale = _scale(distances, targets.weights, unit, settings)
    input_scale = (scale / gen.shape[2] ** 0.5).clamp(min=_MIN_SCALE / unit)
    forces = _forces(distances / scale.clamp(min=_MIN_SCALE / unit), targets, settings)
    force, force_sq = _normalised_force(forces, input_scale, settings)
    return _Field(force, force_sq, unit, input_scale, scale)


def _validate(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    weight_gen: Tensor | None,
    weight_pos: Tensor | None,
    weight_neg: Tensor | None,
) -> Tensor:
    """Return the largest magnitude of what is given of each problem, [B]."""
    largest = torch.maximum(check_samples("gen", gen), check_samples("pos", pos, like=gen))
    if neg is not None:
        largest = torch.maximum(largest, check_samples("neg", neg, like=gen, allow_empty=True))
    if neg is None and weight_neg is not None:
        raise ValueError("weight_neg was given without neg: pass the extra negatives or leave the weights out.")
    for name, weights, samples in (
        ("weight_gen", weight_gen, gen),
        ("weight_pos", weight_pos, pos),
        ("weight_neg", weight_neg, neg),
    ):
        if weights is not None and samples is not None:
            check_weights(name, weights, samples)
    return largest


def _gather_targets(
    gen: Tensor,
    pos: Tensor,
    neg: Tensor | None,
    weights: tuple[Tensor | None, Tensor | None, Tensor | None],
    unit: Tensor,
) -> _Targets:
    """Stack samples, extra negatives and positives to one [B, M, S] tensor relative to the samples' mean, in `unit`."""
    weight_gen, weight_pos, weight_neg = weights
    parts = [(gen, weight_gen)]
    if neg is not None:
        parts.append((neg.to(gen.dtype), weight_neg))
    parts.append((pos.to(gen.dtype), weight_pos))
    all_weights = None
    if any(weight is not None for _, weight in parts):
        all_weights = torch.cat([_or_ones(weight, points) for points, weight in parts], dim=1)
    stacked = torch.cat([points for points, _ in parts], dim=1)
    per_unit = unit.reciprocal()
    origin = gen.mean(dim=1, keepdim=True) * -per_unit
    return _Targets(
        points=torch.addcmul(origin, stacked, per_unit, out=stacked),
        weights=all_weights,
        num_negatives=sum(points.shape[1] for points, _ in parts[:-1]),
    )


def _or_ones(weight: Tensor | None, points: Tensor) -> Tensor:
    return points.new_ones(points.shape[:2]) if weight is None else weight.to(points.dtype)


def _distances(num_samples: int, points: Tensor) -> Tensor:
    """Euclidean distances [B, G, M] by the Gram matrix, which needs no [B, G, M, S] intermediate."""
    squares = torch.linalg.vector_norm(points, dim=2).square_()  # unlike a sum of squares, makes no copy of the points
    squared = squares[:, :num_samples, None] + squares[:, None, :]
    squared.baddbmm_(points[:, :num_samples], points.transpose(1, 2), alpha=-2.0)
    squared.diagonal(dim1=1, dim2=2).zero_()  # of samples to themselves, which would be rounding error
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
    return _of_each_problem(mean.unsqueeze(0), len(unit)).unsqueeze(2) / unit


def _of_each_problem(values: Tensor, num_problems: int) -> Tensor:
    """Repeat values of features [R, F] for their problems, [B, R]."""
    return values.T.repeat_interleave(num_problems // values.shape[1], dim=0)


def _forces(distances: Tensor, targets: _Targets, settings: _Settings) -> Tensor:
    """Return the force of every temperature on every sample, [B, R, G, S], in the unit of the points.

    The distances, in units of their mean, are given away.
    """
    distances.diagonal(dim1=1, dim2=2).add_(_SELF_DISTANCE)
    logits = distances.unsqueeze(1) * -settings.temperatures.reciprocal().reshape(-1, 1, 1)  # [B, R, G, M]
    coefficients = _coefficients(logits, targets, settings.affinity_floor)
    # Those of a row add up to zero up to rounding, which a pull towards the sample itself takes away.
    coefficients.diagonal(dim1=2, dim2=3).sub_(coefficients.sum(dim=3))
    # Temperatures are rows of one product, since a product of each would copy the points.
    return (coefficients.flatten(1, 2) @ targets.points).unflatten(1, coefficients.shape[1:3])


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
    rows = forces.flatten(2)  # [B, R, G S]
    # The square of a tiny scale would be zero.
    rms = torch.linalg.vector_norm(rows, dim=2) / rows.shape[2] ** 0.5
    of_problems = (rms / input_scale.squeeze(2)).square()  # [B, R]
    by_feature = of_problems.reshape(settings.num_features, -1, forces.shape[1])  # [F, B / F, R]
    if settings.scope == "group":
        norm, force_sq = of_problems, by_feature.mean(dim=1).T
    else:
        (mean,) = global_mean(by_feature.transpose(0, 1).flatten(1), keep_last=True)  # [F R]
        force_sq = mean.reshape(settings.num_features, -1).T
        norm = _of_each_problem(force_sq, len(forces))
    per_norm = (norm.clamp(min=_MIN_FORCE_SQ).sqrt() * input_scale.squeeze(2)).reciprocal()
    return (per_norm.unsqueeze(1) @ rows).reshape(forces[:, 0].shape), force_sq
