"""The interface of tokenizers: images in, latents out, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

Randomness = torch.Generator | list[torch.Generator] | None  # of a batch, or of each image of it


class Tokenizer(nn.Module, ABC):
    """A frozen autoencoder. Images are [B, channels, H, W] in [-1, 1]; the gradient flows through `decode`.

    Subclasses set `factor` (side of an image over side of its latent) and `latent_channels`.

    Args:
        image_channels: channels of an image.
        latent_channels: channels of a latent.
        factor: pixels per latent position along one side.
    """

    def __init__(self, image_channels: int, latent_channels: int, factor: int) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.factor = factor

    @torch.no_grad()
    def encode(self, images: Tensor, generator: Randomness = None) -> Tensor:
        """Return the latents [B, latent_channels, H / factor, W / factor], without gradient.

        Args:
            images: [B, image_channels, H, W] in [-1, 1].
            generator: draws the latents of autoencoders that are random; on the device of the images, or the CPU. With
                one for each image, a latent does not depend on the batch that its image is in.

        Raises:
            ValueError: other channels, a side that is no multiple of `factor`, or generators for other images.
        """
        if isinstance(generator, list) and len(generator) != len(images):
            raise ValueError(f"there are {len(generator)} generators for {len(images)} images; expected one for each.")
        if images.ndim != 4 or images.shape[1] != self.image_channels or any(n % self.factor for n in images.shape[2:]):
            raise ValueError(
                f"images have shape {list(images.shape)}; expected [B, {self.image_channels}, H, W] with sides that "
                f"are multiples of {self.factor}."
            )
        return self._encode(images, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images [B, image_channels, H, W] of latents, about in [-1, 1] and not clipped.

        Raises:
            ValueError: other channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents have shape {list(latents.shape)}; expected [B, {self.latent_channels}, height, width]."
            )
        return self._decode(latents)

    def freeze(self) -> None:
        """Make every parameter constant; a constructor calls this last."""
        self.requires_grad_(False)
        self.eval()

    @abstractmethod
    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        """Compute encode's result from checked images."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Compute decode's result from checked latents."""
