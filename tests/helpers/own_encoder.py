"""Networks that tests name as `feature.own.factory`."""

from torch import nn


def tiny() -> nn.Module:
    """Two layers for grey images."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1))


def number() -> int:
    """No network."""
    return 3
