"""A small classifier of a data set, trained in seconds with a fixed seed: its features and labels judge samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (32, 64)
_FEATURES = 64
_BATCH = 128
_LEARNING_RATE = 2e-3
DEFAULT_STEPS = 800


class ImageClassifier(nn.Module):
    """Two convolutions, each with pooling, and two linear layers, for images of at least 4x4.

    Args:
        channels: of an image.
        num_classes: classes.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels = channels
        first, second = _WIDTHS
        self.body = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * second, _FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(_FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the last hidden layer of images [B, C, H, W] in [-1, 1], [B, 64]."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes]."""
        return self.head(self.features(images))


def train_classifier(
    images: Tensor, class_ids: Tensor, num_classes: int, num_steps: int = DEFAULT_STEPS, seed: int = 0
) -> ImageClassifier:
    """Train a classifier on images with small random shifts; the same seed gives the same one.

    Args:
        images: [N, C, H, W] in [-1, 1].
        class_ids: [N].
        num_classes: classes.
        num_steps: Adam steps of 128 images.
        seed: of weights, batches and shifts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ImageClassifier(images.shape[1], num_classes)
        draws = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        for step in range(num_steps):
            rows = torch.randint(len(images), (_BATCH,), generator=draws)
            batch = _shifted(images[rows], torch.randint(3, (2,), generator=draws).tolist())
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - step / num_steps)
            loss = functional.cross_entropy(network(batch), class_ids[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _shifted(images: Tensor, offset: list[int]) -> Tensor:
    """Move images by up to one pixel (an offset of 1 is none), over a border of background, -1."""
    row, column = offset
    height, width = images.shape[2:]
    padded = functional.pad(images, (1, 1, 1, 1), value=-1.0)
    return padded[:, :, row : row + height, column : column + width]
