"""Crops of images: random in training (Diffusion Policy's augmentation), central otherwise."""

import torch
from torch import Tensor


def draw_crops(
    size: tuple[int, ...], image: tuple[int, int], crop: tuple[int, int], generator: torch.Generator | None
) -> Tensor:
    """Return uniformly drawn upper left corners [*size, 2] (row, column) of crops that fit into the image."""
    ranges = [extent - cropped + 1 for extent, cropped in zip(image, crop, strict=True)]
    return torch.stack([torch.randint(limit, size, generator=generator) for limit in ranges], dim=-1)


def crop_at(images: Tensor, corners: Tensor, crop: tuple[int, int]) -> Tensor:
    """Cut [N, C, h, w] out of images [N, C, H, W], each at its own corner [N, 2]; the memory layout is kept."""
    # A view of every possible crop, from which one an image is copied: several times faster than indexing pixels.
    every_crop = images.unfold(2, crop[0], 1).unfold(3, crop[1], 1)  # [N, C, rows, columns, h, w]
    number = torch.arange(len(images), device=images.device)
    return every_crop[number, :, corners[:, 0], corners[:, 1]]


def crop_centre(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """Cut the middle [N, C, h, w] out of images [N, C, H, W]."""
    top, left = ((extent - cropped) // 2 for extent, cropped in zip(images.shape[2:], crop, strict=True))
    return images[:, :, top : top + crop[0], left : left + crop[1]]
