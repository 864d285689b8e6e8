"""LeRobot's normalisation as our `Normalizer`: both are x * scale + offset, per key and dimension.

With the statistics of the data set and eps = 1e-8, LeRobot computes

    MIN_MAX   observations  2 * (x - min) / (max - min) - 1       actions  (y + 1) / 2 * (max - min) + min
    MEAN_STD  observations  (x - mean) / (std + eps)              actions  y * std + mean
    IDENTITY  x                                                            y

with eps in the place of max - min where that is zero. All of this is affine, and the fold is exact but for the rounding
of float32, with one exception: in a dimension that is constant in the data, LeRobot divides by eps, or by a standard
deviation that is rounding alone. The constant itself becomes what LeRobot makes of it, and an action the constant. But
what an observation deviates from it, which LeRobot multiplies by up to 2e8, is passed on in its own units, as after
`Normalizer.fit`: one float32 product and sum cannot hold such a map, and no policy has learned from such numbers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from drift_policy.errors import CheckpointError

Statistics = Mapping[str, Tensor]  # "min", "max", "mean", "std", ... -> [D]
NEEDED: dict[str, tuple[str, ...]] = {"IDENTITY": (), "MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std")}
# Largest error of a normalised observation by the rounding of scale and offset, which is that of the last bits of the
# observation itself.
_TOLERANCE = 0.01
_ROUNDING = 2.0**-23  # of a float32 product and sum, relative


def observation_maps(mode: str, statistics: Statistics, eps: float, where: str) -> tuple[Tensor, Tensor]:
    """Return scale and offset [D], float32, with which x * scale + offset is what LeRobot's normaliser computes.

    Args:
        mode: a key of `NEEDED`, not "IDENTITY".
        statistics: float32, those that the mode needs; with "min" and "max" also MEAN_STD knows what is constant.
        eps: of LeRobot's normaliser.
        where: what the numbers are, for messages.

    Raises:
        CheckpointError: a dimension varies so little beside its size that float32 cannot hold the map.
    """
    exact = {name: value.double() for name, value in statistics.items()}
    if mode == "MIN_MAX":
        low, high = exact["min"], exact["max"]
        scale = 2.0 / torch.where(low == high, eps, high - low)
        offset = -1.0 - low * scale
    else:
        scale = 1.0 / (exact["std"] + eps)
        offset = -exact["mean"] * scale
    value = exact["min"] if "min" in exact else exact["mean"]
    there = value * scale + offset  # what LeRobot makes of the constant: -1, or about 0
    constant = _constant(mode, exact)
    scale = torch.where(constant, 1.0, scale)
    offset = torch.where(constant, there - value, offset)
    rounding = _ROUNDING * offset.abs()  # x * scale is about as large, and they cancel
    if bool((rounding > _TOLERANCE).any()):
        dimension = int(rounding.argmax())
        raise CheckpointError(
            f"{where}: dimension {dimension} varies so little beside its size that LeRobot's {mode} cannot be folded "
            f"into float32: rounding would change normalised numbers by {float(rounding[dimension]):.1g}, and "
            f"{_TOLERANCE:g} is allowed. Train without that dimension, or with its numbers counted from another zero."
        )
    return _checked(scale, offset, where)


def action_maps(mode: str, statistics: Statistics, where: str) -> tuple[Tensor, Tensor]:
    """Return scale and offset [D], float32, with which (y - offset) / scale is what LeRobot's unnormaliser computes.

    Args:
        mode: a key of `NEEDED`, not "IDENTITY".
        statistics: float32, those that the mode needs.
        where: what the numbers are, for messages.

    Raises:
        CheckpointError: the numbers are too large or too small for float32.
    """
    exact = {name: value.double() for name, value in statistics.items()}
    if mode == "MIN_MAX":
        value, constant = exact["min"], exact["min"] == exact["max"]
        scale = 2.0 / (exact["max"] - value)
        offset = -1.0 - value * scale
    else:
        value, constant = exact["mean"], exact["std"] == 0
        scale = 1.0 / exact["std"]
        offset = -value * scale
    steep = _steep_scale(value)
    return _checked(torch.where(constant, steep, scale), torch.where(constant, -value * steep, offset), where)


def _constant(mode: str, statistics: Statistics) -> Tensor:
    """Return which dimensions are constant in the data, [D]."""
    constant = statistics["std"] == 0 if mode == "MEAN_STD" else torch.tensor(False)
    if "min" in statistics and "max" in statistics:
        constant = constant | (statistics["min"] == statistics["max"])
    return constant


def _steep_scale(value: Tensor) -> Tensor:
    """Return powers of two with which (y + value * scale) / scale is `value` [D] in float32, whatever y is.

    With them value * scale is exact, so that the constant comes back to the bit. y below 16 is lost beside it in the
    rounding; beside a constant near zero it is not, but leaves less than 1e-6.
    """
    exponent = torch.frexp(value).exponent
    return torch.ldexp(torch.ones_like(value), torch.where(value.abs() < 2.0**-40, 27, 30 - exponent))


def _checked(scale: Tensor, offset: Tensor, where: str) -> tuple[Tensor, Tensor]:
    scale, offset = scale.float(), offset.float()
    if not bool((torch.isfinite(scale) & torch.isfinite(offset) & (scale != 0)).all()):
        raise CheckpointError(
            f"{where}: statistics of this size cannot be folded into float32. Train with numbers in other units."
        )
    return scale, offset
