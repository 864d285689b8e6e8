"""Pixel space: the latent is the image."""

from __future__ import annotations

from torch import Tensor

from image_gen.tokenizers.base import Randomness, Tokenizer


class Pixels(Tokenizer):
    """The identity.

    Args:
        image_channels: channels of an image.
    """

    def __init__(self, image_channels: int = 3) -> None:
        super().__init__(image_channels, image_channels, factor=1)

    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        return images

    def _decode(self, latents: Tensor) -> Tensor:
        return latents
