"""Crops, sizes and flips of single images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drift_policy.errors import require

CENTRE = "centre"
RANDOM_RESIZED = "random_resized"
_ATTEMPTS = 10  # rectangles that are tried before the largest central one is taken


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes a square of `size` pixels."""

    size: int  # side of the result in pixels
    crop: str = CENTRE  # "centre", or "random_resized": a random rectangle, resized
    min_area: float = 0.2  # least share of the image's area in a random rectangle; the largest is 1
    flip: bool = False  # mirror half of the images

    def __post_init__(self) -> None:
        require(self.size >= 1, f"transform: size must be at least 1, but is {self.size}.")
        require(
            self.crop in (CENTRE, RANDOM_RESIZED),
            f"dataset.crop must be {CENTRE} or {RANDOM_RESIZED}, but is {self.crop!r}.",
        )
        require(0 < self.min_area <= 1, f"transform: min_area must be in (0, 1], but is {self.min_area}.")

    def __call__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Transform bytes [H, W, channels] to [size, size, channels]."""
        if self.crop == CENTRE:
            pixels = centre_crop(pixels, self.size)
        else:
            pixels = random_resized_crop(pixels, self.size, rng, self.min_area)
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels


def centre_crop(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the shorter side to `size` and cut the central square, as ADM and DiT do (Dhariwal & Nichol 2021).

    Images over twice the size are halved by a box filter first, then resized bicubically.
    """
    if pixels.shape[:2] == (size, size):
        return pixels
    height, width = pixels.shape[:2]
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
        pixels = _resize(pixels, height, width, Image.Resampling.BOX)
    scale = size / min(height, width)
    height, width = max(round(height * scale), size), max(round(width * scale), size)
    pixels = _resize(pixels, height, width, Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def random_resized_crop(
    pixels: NDArray[np.uint8], size: int, rng: np.random.Generator, min_area: float = 0.2
) -> NDArray[np.uint8]:
    """Cut a rectangle with a share of the area in [min_area, 1] and sides 3:4 to 4:3, and resize it bicubically.

    The recipe of Inception (Szegedy et al. 2015), on which the masked autoencoder and pixel generators are trained.
    """
    height, width = pixels.shape[:2]
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            part = pixels[top : top + crop_height, left : left + crop_width]
            return _resize(part, size, size, Image.Resampling.BICUBIC)
    return centre_crop(pixels, size)


def _resize(pixels: NDArray[np.uint8], height: int, width: int, method: Any) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    # PIL has no images of one channel with a channel axis.
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize((width, height), method)).reshape(height, width, -1)
