"""The masked autoencoder's encoder: a ResNet of basic blocks with group normalisation (arXiv 2602.04770, appendix A.4).

Shape letters: B batch, C channels, H and W height and width of the (folded) image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_MAX_GROUPS = 32
_NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with as many groups as divide `channels`, at most 32."""
    groups = next(n for n in range(min(_MAX_GROUPS, channels), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, eps=_NORM_EPS)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, which is projected where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.gn1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.gn2 = group_norm(out_channels)
        self.proj_conv: nn.Conv2d | None = None
        self.proj_gn: nn.GroupNorm | None = None
        if stride != 1 or in_channels != out_channels:
            self.proj_conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.proj_gn = group_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, in_channels, h, w] to [B, out_channels, h / stride, w / stride]."""
        hidden = self.dropout(functional.relu(self.gn1(self.conv1(x))))
        hidden = self.gn2(self.conv2(hidden))
        if self.proj_conv is not None and self.proj_gn is not None:
            x = self.proj_gn(self.proj_conv(x))
        return functional.relu(hidden + x)


class Encoder(nn.Module):
    """Stem and four stages; each stage halves the side but the first, and doubles the channels.

    With `activation_checkpointing` set, the backward pass computes the inside of each block again instead of keeping
    it: the gradients are the same, also those of the images through a frozen encoder.

    Args:
        in_channels: of the (folded) image.
        base_channels: C; the stages have C, 2C, 4C and 8C channels.
        layers: blocks of each stage.
        dropout: probability inside a block.
    """

    def __init__(self, in_channels: int, base_channels: int, layers: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, 1, 1, bias=False)
        self.gn1 = group_norm(base_channels)
        self.stages = nn.ModuleList()
        self.stage_norms = nn.ModuleList()
        channels = base_channels
        for stage, depth in enumerate(layers):
            width = base_channels * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            widths = [channels] + [width] * (depth - 1)
            self.stages.append(
                nn.ModuleList(BasicBlock(n, width, stride, dropout) for n, stride in zip(widths, strides, strict=True))
            )
            self.stage_norms.append(group_norm(width))
            channels = width

    def forward(self, x: Tensor, every_k_block: int = 0) -> dict[str, Tensor]:
        """Return the feature maps of [B, C, H, W] by name.

        `conv1` and `layer1` to `layer4` are the normalised outputs of the stem and the stages, which feed the next
        stage; `layer<i>_blk<k>` is the output of the k-th block, for every k that `every_k_block` divides (0: none).
        """
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        x = functional.relu(self.gn1(self.conv1(x)))
        maps = {"conv1": x}
        for i, (blocks, norm) in enumerate(zip(self.stages, self.stage_norms, strict=True), start=1):
            for k, block in enumerate(cast(nn.ModuleList, blocks), start=1):
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
                if every_k_block and k % every_k_block == 0:
                    maps[f"layer{i}_blk{k}"] = x
            x = norm(x)
            maps[f"layer{i}"] = x
        return maps
