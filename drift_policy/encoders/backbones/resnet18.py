"""ResNet-18 with group normalisation and spatial softmax: Diffusion Policy's image encoder (He et al. 2016).

Group instead of batch normalisation, because an average of the weights (EMA) does not average batch statistics. Trained
from scratch. Parameters are in the order of torchvision's `resnet18` without its classifier.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.encoders.backbones.spatial_softmax import SpatialSoftmax
from drift_policy.errors import require

_CHANNELS_PER_GROUP = 16
_STAGES = (64, 128, 256, 512)
_STRIDE = 32  # of the whole trunk


@dataclass
class Resnet18Config:
    """Settings of `Resnet18`; the defaults are Diffusion Policy's."""

    num_keypoints: int = 32  # positions that the spatial softmax reads from the last feature map
    feature_size: int = 64  # numbers an image, after a linear layer

    def __post_init__(self) -> None:
        for name in ("num_keypoints", "feature_size"):
            require(getattr(self, name) >= 1, f"resnet18: {name} must be at least 1, but is {getattr(self, name)}.")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_PER_GROUP, channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = _norm(out_channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.downsample.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.downsample.append(_norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Transform [N, in_channels, h, w] to [N, out_channels, h / stride, w / stride]."""
        hidden = functional.relu(self.norm1(self.conv1(x)))
        hidden = self.norm2(self.conv2(hidden))
        return functional.relu(hidden + self.downsample(x))


class Resnet18(nn.Sequential):
    """ResNet-18 trunk, spatial softmax, linear layer: [N, C, H, W] -> [N, feature_size].

    Args:
        config: settings.
        channels: C.
        height: H.
        width: W.
    """

    def __init__(self, config: Resnet18Config, channels: int, height: int, width: int) -> None:
        trunk: list[nn.Module] = [
            nn.Conv2d(channels, _STAGES[0], 7, 2, 3, bias=False),
            _norm(_STAGES[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        previous = _STAGES[0]
        for stage, stage_channels in enumerate(_STAGES):
            trunk.append(BasicBlock(previous, stage_channels, stride=1 if stage == 0 else 2))
            trunk.append(BasicBlock(stage_channels, stage_channels, stride=1))
            previous = stage_channels
        rows, columns = -(-height // _STRIDE), -(-width // _STRIDE)
        super().__init__(
            *trunk,
            SpatialSoftmax(previous, rows, columns, config.num_keypoints),
            nn.Linear(2 * config.num_keypoints, config.feature_size),
        )
        for module in nn.Sequential(*trunk).modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def prefer_single_images(self) -> None:
        """Make single images on one CPU thread twice as fast, which a robot loop encodes; batches take about as long.

        With weights whose channels come first, PyTorch computes convolutions of one small image without oneDNN.
        """
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which PyTorch's stubs lack
