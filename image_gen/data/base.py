"""The interface of labelled image collections, and their images as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from drift_policy.errors import DataError
from image_gen.data.transforms import ImageTransform
from image_gen.levels import from_levels

Pixels = NDArray[np.uint8]  # [H, W, channels]


class ImageSet(ABC):
    """Images with a class each.

    Args:
        class_names: one name per class; labels index them.
        labels: class of each image, [N].
        channels: of every image.

    Raises:
        DataError: no images, or a label without a class.
    """

    def __init__(self, class_names: Sequence[str], labels: NDArray[Any], channels: int) -> None:
        self.class_names = list(class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.channels = channels
        if len(self.labels) == 0:
            raise DataError("The data set holds no images.")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise DataError(
                f"The data set has {len(self.class_names)} classes, but labels from {self.labels.min()} to "
                f"{self.labels.max()}: its files are damaged or do not belong together."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Pixels:
        """Return one image as bytes [H, W, channels].

        Raises:
            DataError: its file is damaged.
        """


class ArrayImages(ImageSet):
    """Images in memory.

    Args:
        images: bytes [N, H, W, channels].
        labels: [N].
        class_names: one name per class.

    Raises:
        DataError: the arrays do not fit together.
    """

    def __init__(self, images: NDArray[Any], labels: NDArray[Any], class_names: Sequence[str]) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels):
            raise DataError(
                f"images must be bytes [N, H, W, channels] with one label each, but have shape {list(images.shape)}, "
                f"type {images.dtype} and {len(labels)} labels."
            )
        super().__init__(class_names, labels, channels=images.shape[3])
        self.images = images

    def image(self, index: int) -> Pixels:
        """Return one image as bytes [H, W, channels]."""
        return self.images[index]


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images ready for a network: [channels, size, size] in [-1, 1], with their class.

    What is random about an image is a function of the seed, the epoch and its index, so that a resumed run, and any
    number of reading processes, see the same images.

    Args:
        images: the collection.
        transform: crop, size and flip.
        seed: of the random crops and flips.
    """

    def __init__(self, images: ImageSet, transform: ImageTransform, seed: int = 0) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops and flips of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        pixels = self.transform(self.images.image(index), rng)
        return to_tensor(pixels), int(self.images.labels[index])


def to_tensor(pixels: Pixels) -> Tensor:
    """Return bytes [H, W, channels] as float32 [channels, H, W] in [-1, 1]."""
    own = np.array(pixels.transpose(2, 0, 1), order="C")  # a copy: pixels of a file are read-only, which torch warns of
    return from_levels(torch.from_numpy(own))
