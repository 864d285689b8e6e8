"""The masked autoencoder as a feature extractor: the paper's encoder."""

from __future__ import annotations

from torch import Tensor

from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_maps import Features, FeatureSettings
from image_gen.models import MAE


class MaeFeatures(FeatureExtractor):
    """Frozen masked autoencoder.

    Args:
        mae: with its weights, see `image_gen.load_mae`.
        settings: which features to take; the paper's if absent.
    """

    def __init__(self, mae: MAE, settings: FeatureSettings | None = None) -> None:
        super().__init__()
        self.mae = mae
        self.settings = FeatureSettings() if settings is None else settings
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return the features of images or latents [B, C, H, W]; see `MAE.features`."""
        return self.mae.features(x, self.settings)
