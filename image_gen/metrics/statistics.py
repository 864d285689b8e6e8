"""Fréchet distance, Inception Score, precision and recall, from features and logits of any network."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drift_policy.errors import DataError

_CHUNK = 1024  # rows of a distance matrix that are in memory at once
# What numpy raises on files that are missing, cut off, damaged, encrypted, or of another kind.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] of features, in float64."""

    mean: Tensor
    covariance: Tensor
    number: int  # of features; 0 if unknown


class _Identity(nn.Module):
    """Gives features as they are, where torchmetrics expects a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def moments_of(features: Tensor) -> Moments:
    """Return mean and (unbiased) covariance of features [N, D].

    Raises:
        ValueError: fewer than two features, or a number that is not finite.
    """
    if len(features) < 2:
        raise ValueError(f"A covariance needs at least 2 images, but there is {len(features)}.")
    features = features.double()
    if not bool(torch.isfinite(features).all()):
        raise ValueError("The features hold NaN or infinity: the generator or the network diverged.")
    return Moments(features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1), len(features))


def frechet_distance(generated: Moments, real: Moments) -> float:
    """Return the squared Fréchet distance of two normal distributions (Heusel et al. 2017), by torchmetrics.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Identity(len(real.mean)))
    metric.set_dtype(torch.float64)
    metric.orig_dtype = torch.float64
    for side, moments in (("real", real), ("fake", generated)):
        count = max(moments.number, 2)
        mean = moments.mean.double()
        setattr(metric, f"{side}_features_sum", mean * count)
        scatter = moments.covariance.double() * (count - 1) + count * torch.outer(mean, mean)
        setattr(metric, f"{side}_features_cov_sum", scatter)
        setattr(metric, f"{side}_features_num_samples", torch.tensor(count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no images were given: their sums were
        return float(metric.compute())


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp(E KL(p(y|x) | p(y))) (Salimans et al. 2016).

    Args:
        logits: [N, classes].
        splits: parts; the images are shuffled first, always alike.
    """
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all logits, which are here already
        torch.manual_seed(0)
        metric = InceptionScore(feature=nn.Identity(), splits=splits)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return float(mean), float(deviation) if splits > 1 else 0.0


def precision_recall(generated: Tensor, real: Tensor, num_nearest: int = 3) -> tuple[float, float]:
    """Return precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of generated features inside the real manifold, recall that of real ones inside the
    generated; a manifold is the union of balls around its features that reach to the k-th nearest other one. Memory
    grows with N + M, not with their product.

    Args:
        generated: [N, D].
        real: [M, D].
        num_nearest: k; the published numbers use 3.

    Raises:
        ValueError: not more features than k.
    """
    if min(len(generated), len(real)) <= num_nearest:
        raise ValueError(
            f"precision and recall need more than num_nearest={num_nearest} images on each side, but there are "
            f"{len(generated)} and {len(real)}."
        )
    return (
        _share_inside(generated, real, _radii(real, num_nearest)),
        _share_inside(real, generated, _radii(generated, num_nearest)),
    )


def read_statistics(path: Path) -> tuple[Moments | None, NDArray[np.uint8] | None]:
    """Read reference statistics: `mu` and `sigma`, and images if there are (`arr_0`, [N, H, W, 3] bytes, as ADM's).

    Raises:
        DataError: the file is missing, damaged, or holds neither.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            mean = torch.from_numpy(file["mu"]).double() if {"mu", "sigma"} <= names else None
            covariance = torch.from_numpy(file["sigma"]).double() if mean is not None else None
            images = file["arr_0"] if "arr_0" in names else None
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as reference statistics ({error}): it is missing, damaged or no .npz file."
        ) from error
    if mean is None and images is None:
        held = ", ".join(sorted(names)) or "nothing"
        raise DataError(f"{path} holds {held}; expected mu and sigma, or images in arr_0.")
    if images is not None:
        _check_images(images, path)
    if mean is None or covariance is None:
        return None, images
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)} do not fit together.")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise DataError(f"{path}: mu or sigma hold NaN or infinity.")
    return Moments(mean, covariance, 0), images


def _check_images(images: NDArray[Any], path: Path) -> None:
    if images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(f"{path}: arr_0 must be bytes [N, H, W, channels], but is {images.dtype} {list(images.shape)}.")
    if images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{path}: arr_0 must hold images of 1 or 3 channels, but has shape {list(images.shape)}.")


def _radii(features: Tensor, num_nearest: int) -> Tensor:
    # The nearest of all is the feature itself.
    parts = [torch.cdist(part, features).kthvalue(num_nearest + 1, dim=1).values for part in features.split(_CHUNK)]
    return torch.cat(parts)


def _share_inside(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in points.split(_CHUNK)]
    return int(torch.cat(inside).sum()) / len(points)
