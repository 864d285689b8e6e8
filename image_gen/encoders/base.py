"""The interface of frozen feature extractors, and how to put several together or behind a decoder."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from drift_policy.errors import ConfigurationError
from image_gen.feature_maps import Features
from image_gen.tokenizers.base import Tokenizer


class FeatureExtractor(nn.Module, ABC):
    """A frozen network. The gradient flows through it to the images, never to its weights.

    Constructors call `freeze` last. Evaluation mode is kept, whatever the training around it sets.
    """

    @abstractmethod
    def features(self, x: Tensor) -> Features:
        """Return the features of images in [-1, 1] or latents.

        Args:
            x: [B, C, H, W].

        Returns:
            name -> [B, locations, channels].
        """

    def freeze(self) -> None:
        """Make every parameter constant and switch dropout off."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class CombinedFeatures(FeatureExtractor):
    """The features of several extractors together, such as MAE and ConvNeXt-V2 for the paper's pixel models.

    Args:
        extractors: all take the same images or latents.

    Raises:
        ConfigurationError: no extractor.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        super().__init__()
        if not extractors:
            raise ConfigurationError("CombinedFeatures needs at least one feature extractor.")
        self.extractors = nn.ModuleList(extractors)
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return all features; two extractors with a feature of one name are a ConfigurationError."""
        combined: Features = {}
        for extractor in self.extractors:
            found = cast(FeatureExtractor, extractor).features(x)
            common = sorted(combined.keys() & found.keys())
            if common:
                raise ConfigurationError(f"Two encoders have a feature named {common[0]!r}: give one a `prefix`.")
            combined |= found
        return combined


class DecodedFeatures(FeatureExtractor):
    """Features of an encoder for pixels, for a generator of latents: the latents are decoded first.

    Args:
        tokenizer: whose latents are given.
        extractor: takes its images.
    """

    def __init__(self, tokenizer: Tokenizer, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return the features of the decoded latents [B, C, h, w]."""
        return self.extractor.features(self.tokenizer.decode(x))


class RecomputedFeatures(FeatureExtractor):
    """Keeps no activations of an extractor: the backward pass computes them again, part after part.

    Args:
        extractor: any.
        size: images of a part at most; parts are about equal.
    """

    def __init__(self, extractor: FeatureExtractor, size: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.size = size
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return the features of the extractor; without a gradient all images go through it at once."""
        if not torch.is_grad_enabled():
            return self.extractor.features(x)
        compute = self.extractor.features
        parts: list[Features] = [
            checkpoint(compute, part, use_reentrant=False, preserve_rng_state=False)
            for part in x.tensor_split(math.ceil(len(x) / self.size))
        ]
        return {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
