"""The masked autoencoder's decoder: a U-Net over the encoder's feature maps (arXiv 2602.04770, appendix A.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from image_gen.models.mae_encoder import group_norm


class ConvNormRelu(nn.Module):
    """3x3 convolution, group normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
        self.gn = group_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, in_channels, h, w] to [B, out_channels, h, w]."""
        return functional.relu(self.gn(self.conv(x)))


class UpBlock(nn.Module):
    """Resizes to the skip connection's size, appends it, and mixes both by two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.concat_norm = group_norm(in_channels + skip_channels)
        self.proj = ConvNormRelu(in_channels + skip_channels, out_channels)
        self.refine = ConvNormRelu(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Transform [B, in_channels, h, w] to the size of `skip`."""
        x = functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        return self.refine(self.proj(self.concat_norm(torch.cat([x, skip], dim=1))))


class Decoder(nn.Module):
    """From the encoder's feature maps to the (folded) image.

    Args:
        base_channels: C of the encoder.
        out_channels: of the (folded) image.
    """

    def __init__(self, base_channels: int, out_channels: int) -> None:
        super().__init__()
        c = base_channels
        self.bridge = ConvNormRelu(8 * c, 8 * c)
        self.up43 = UpBlock(8 * c, 4 * c, 4 * c)
        self.up32 = UpBlock(4 * c, 2 * c, 2 * c)
        self.up21 = UpBlock(2 * c, c, c)
        self.up10 = UpBlock(c, c, c)
        self.head = nn.Conv2d(c, out_channels, 1)

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Return the reconstruction [B, out_channels, H, W]."""
        x = self.bridge(maps["layer4"])
        x = self.up43(x, maps["layer3"])
        x = self.up32(x, maps["layer2"])
        x = self.up21(x, maps["layer1"])
        x = self.up10(x, maps["conv1"])
        return self.head(x)
