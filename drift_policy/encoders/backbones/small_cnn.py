"""A small convolutional network that two CPU cores can train."""

from dataclasses import dataclass, field

from torch import nn

from drift_policy.encoders.backbones.spatial_softmax import SpatialSoftmax
from drift_policy.errors import require

_CHANNELS_PER_GROUP = 16


@dataclass
class SmallCnnConfig:
    """Settings of `SmallCnn`."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 64])  # of each convolution; multiples of 16
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 3, 3])  # of each convolution; odd
    strides: list[int] = field(default_factory=lambda: [2, 2, 1])  # of each convolution
    num_keypoints: int = 64  # positions that the spatial softmax reads from the last feature map
    feature_size: int = 64  # numbers an image, after a linear layer

    def __post_init__(self) -> None:
        layers = (self.channels, self.kernel_sizes, self.strides)
        require(
            1 <= len(self.channels) == len(self.kernel_sizes) == len(self.strides),
            f"small_cnn: channels, kernel_sizes and strides need one number a convolution, but are {layers}.",
        )
        require(
            all(channels >= 1 and channels % _CHANNELS_PER_GROUP == 0 for channels in self.channels),
            f"small_cnn: channels must be multiples of {_CHANNELS_PER_GROUP}, but are {self.channels}.",
        )
        require(
            all(size >= 1 and size % 2 == 1 for size in self.kernel_sizes),
            f"small_cnn: kernel_sizes must be odd, but are {self.kernel_sizes}.",
        )
        require(all(stride >= 1 for stride in self.strides), f"small_cnn: strides must be positive: {self.strides}.")
        for name in ("num_keypoints", "feature_size"):
            require(getattr(self, name) >= 1, f"small_cnn: {name} must be at least 1, but is {getattr(self, name)}.")


class SmallCnn(nn.Sequential):
    """Convolutions with group normalisation, spatial softmax, linear layer: [N, C, H, W] -> [N, feature_size].

    A spatial softmax on a map of a quarter of the image's size tells positions to a fraction of a pixel.

    Args:
        config: settings.
        channels: C.
        height: H.
        width: W.
    """

    def __init__(self, config: SmallCnnConfig, channels: int, height: int, width: int) -> None:
        layers: list[nn.Module] = []
        previous = channels
        for size, kernel, stride in zip(config.channels, config.kernel_sizes, config.strides, strict=True):
            layers.append(nn.Conv2d(previous, size, kernel, stride, kernel // 2))
            layers.append(nn.GroupNorm(size // _CHANNELS_PER_GROUP, size))
            layers.append(nn.ReLU())
            height, width, previous = -(-height // stride), -(-width // stride), size
        super().__init__(
            *layers,
            SpatialSoftmax(previous, height, width, config.num_keypoints),
            nn.Linear(2 * config.num_keypoints, config.feature_size),
        )
