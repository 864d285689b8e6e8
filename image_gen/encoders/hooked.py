"""Any image network as a feature extractor: the outputs of its named layers, such as ResNet-50's of SimCLR or MoCo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import ConfigurationError
from image_gen.encoders.base import FeatureExtractor
from image_gen.feature_maps import Features, FeatureSettings, deviation, map_features

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(nn.Module):
    """From images in [-1, 1] to the input of a network trained on normalised images in [0, 1].

    Args:
        size: side in pixels that images are resized to, bilinearly with antialiasing; None keeps them.
        mean: of each channel.
        std: of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        images = ((images + 1) / 2 - self.mean) / self.std
        if self.size is None or images.shape[2:] == (self.size, self.size):
            return images
        return functional.interpolate(
            images, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )


class HookedFeatures(FeatureExtractor):
    """The outputs of named layers of any network, as feature sets.

    A feature map [B, C, H, W] gives its positions, and mean and standard deviation over all of them and over windows;
    tokens [B, T, C] give themselves, and both over all tokens. The prefix comes before each layer's name.

    Args:
        network: takes what `preprocessing` returns, with its weights.
        layers: names of modules in it, as in `network.named_modules()`.
        preprocessing: of images in [-1, 1]; `nn.Identity()` gives them as they are.
        settings: which features to take; the paper's if absent.
        prefix: of all names.

    Raises:
        ConfigurationError: no layer, or one that the network does not have.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        preprocessing: nn.Module,
        settings: FeatureSettings | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        known = dict(network.named_modules())
        unknown = [name for name in layers if not name or name not in known]
        if unknown or not layers:
            raise ConfigurationError(
                f"The encoder has no layer {unknown[0]!r}: its layers are {', '.join(list(known)[1:13])}, ..."
                if unknown
                else "An encoder needs at least one layer whose outputs are compared."
            )
        self.network = network
        self.layers = list(layers)
        self.preprocessing = preprocessing
        self.settings = FeatureSettings() if settings is None else settings
        self.prefix = prefix
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return the features of images [B, C, H, W] in [-1, 1].

        Raises:
            ConfigurationError: a layer gives neither a feature map nor tokens.
        """
        outputs: dict[str, Tensor] = {}
        modules = dict(self.network.named_modules())
        handles = [modules[name].register_forward_hook(partial(_keep, outputs, name)) for name in self.layers]
        try:
            self.network(self.preprocessing(x))
        finally:
            for handle in handles:
                handle.remove()
        features: Features = {}
        for name in self.layers:
            features |= _layer_features(f"{self.prefix}{name}", outputs.get(name), self.settings)
        return features


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
    outputs[name] = output


def _layer_features(name: str, output: object, settings: FeatureSettings) -> Features:
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigurationError(
            f"The output of {name} is {what}; expected a feature map [B, C, H, W] or tokens [B, T, C]: choose other "
            "layers."
        )
    if output.ndim == 4:
        return map_features(name, output, settings)
    features = {name: output}
    if settings.use_mean:
        features[f"{name}_mean"] = output.mean(dim=1, keepdim=True)
    if settings.use_std:
        features[f"{name}_std"] = deviation(output.unsqueeze(1))
    return features
