"""The feature vectors that the drifting loss compares, from the feature maps of a frozen network.

Feature sets of appendix A.5 of arXiv 2602.04770: (a) one vector per position, (b) mean and standard deviation over all
positions, (c, d) over non-overlapping windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einops import rearrange
from torch import Tensor

from drift_policy.errors import require

_VARIANCE_EPS = 1e-6
Features = dict[str, Tensor]  # name -> [B, locations, channels]


@dataclass
class FeatureSettings:
    """Which features to take; the defaults are the paper's."""

    every_k_block: int = 2  # residual blocks whose output counts: every k-th of a stage; 0 takes none
    use_mean: bool = True  # mean over all positions
    use_std: bool = True  # standard deviation over all positions
    patch_mean_size: list[int] = field(default_factory=lambda: [2, 4])  # sides of the windows whose mean is taken
    patch_std_size: list[int] = field(default_factory=lambda: [2, 4])  # sides of those whose standard deviation is

    def __post_init__(self) -> None:
        require(self.every_k_block >= 0, f"feature.every_k_block must not be negative, but is {self.every_k_block}.")
        for name in ("patch_mean_size", "patch_std_size"):
            sizes = getattr(self, name)
            require(
                all(size >= 2 for size in sizes) and len(set(sizes)) == len(sizes),
                f"feature.{name} must hold different sides of at least 2, but is {list(sizes)}.",
            )


def map_features(name: str, maps: Tensor, settings: FeatureSettings) -> Features:
    """Return the feature vectors of one feature map.

    Windows that do not tile the map are left out, as in the released code.

    Args:
        name: of the map; the other features append `_mean`, `_std`, `_mean_<side>` and `_std_<side>`.
        maps: [B, C, H, W].
        settings: which features to take.

    Returns:
        name -> [B, locations, C]; locations in row order.
    """
    features = {name: rearrange(maps, "b c h w -> b (h w) c")}
    everything = rearrange(maps, "b c h w -> b 1 (h w) c")
    if settings.use_mean:
        features[f"{name}_mean"] = everything.mean(dim=2)
    if settings.use_std:
        features[f"{name}_std"] = deviation(everything)
    for size in settings.patch_mean_size:
        if _tiles(maps, size):
            features[f"{name}_mean_{size}"] = _windows(maps, size).mean(dim=2)
    for size in settings.patch_std_size:
        if _tiles(maps, size):
            features[f"{name}_std_{size}"] = deviation(_windows(maps, size))
    return features


def input_rms(maps: Tensor) -> Tensor:
    """Return the root mean square of each channel over all positions, [B, C, H, W] -> [B, 1, C]."""
    return (maps.float().square().mean(dim=(2, 3)) + _VARIANCE_EPS).sqrt().unsqueeze(1)


def deviation(samples: Tensor) -> Tensor:
    """Return the population standard deviation over dimension 2 in float32, [B, L, n, C] -> [B, L, C]."""
    return (samples.float().var(dim=2, correction=0) + _VARIANCE_EPS).sqrt()


def _tiles(maps: Tensor, size: int) -> bool:
    return maps.shape[2] % size == 0 and maps.shape[3] % size == 0


def _windows(maps: Tensor, size: int) -> Tensor:
    return rearrange(maps, "b c (h p) (w q) -> b (h w) (p q) c", p=size, q=size)
