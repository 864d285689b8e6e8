"""ConvNeXt-V2 (Woo et al. 2023), the second encoder of the paper's pixel models, through transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from drift_policy.errors import CheckpointError
from image_gen.encoders.base import FeatureExtractor
from image_gen.encoders.hooked import Preprocessing
from image_gen.feature_maps import Features, FeatureSettings, deviation, map_features

DEFAULT_WEIGHTS = "facebook/convnextv2-base-22k-224"  # size B, trained on ImageNet-22k
IMAGE_SIZE = 224
_STANDARD_EPS = 1e-3


class ConvNextV2Features(FeatureExtractor):
    """Frozen ConvNeXt-V2 on images in [-1, 1], resized to 224 pixels.

    Every position of a stage's output is standardised over its channels. Features are the positions of stages 1 to 3,
    mean and standard deviation of stages 0 to 3, and two global ones: the network's own pooled vector, and the standard
    deviation of the last stage. Autocast does not reach it: in float32, as by default in the released code.

    Args:
        network: a transformers ConvNextV2Model; see `load_convnext_v2`.
        image_size: side that images are resized to.
    """

    def __init__(self, network: nn.Module, image_size: int = IMAGE_SIZE) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = Preprocessing(image_size)
        self.freeze()

    def features(self, x: Tensor) -> Features:
        """Return the features of images [B, 3, H, W]; names begin with `convnext_`."""
        with torch.autocast(x.device.type, enabled=False):
            output = self.network(pixel_values=self.preprocessing(x.float()), output_hidden_states=True)
        statistics = FeatureSettings(patch_mean_size=[], patch_std_size=[])
        features: Features = {}
        # The first hidden state is the stem's output.
        for stage, maps in enumerate(output.hidden_states[1:]):
            name = f"convnext_stage_{stage}"
            features |= map_features(name, _standardise(maps), statistics)
            if stage == 0:
                del features[name]
        features["convnext_global_mean"] = output.pooler_output.unsqueeze(1)
        last = _standardise(output.hidden_states[-1]).flatten(2).transpose(1, 2)
        features["convnext_global_std"] = deviation(last.unsqueeze(1))
        return features


def load_convnext_v2(weights: str | Path = DEFAULT_WEIGHTS) -> ConvNextV2Features:
    """Return the encoder with its weights.

    Args:
        weights: a folder with config.json and model.safetensors, or a name on the Hugging Face Hub.

    Raises:
        CheckpointError: transformers is missing, or the weights are neither there nor downloadable.
    """
    try:
        from transformers import ConvNextV2Model
    except ImportError as error:
        raise CheckpointError(
            "ConvNeXt-V2 needs the package transformers: pip install 'drift-policy[images]'."
        ) from error
    try:
        network, info = ConvNextV2Model.from_pretrained(str(weights), use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The weights of ConvNeXt-V2 cannot be read from {weights} ({str(error).strip().splitlines()[0]}). Where "
            f"there is a network, get them with\n  hf download {DEFAULT_WEIGHTS} --local-dir convnextv2-base\n"
            "and give that folder."
        ) from error
    # transformers draws what it does not find at random, and only warns.
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise CheckpointError(f"{weights} has no usable weights for {wrong[0]} of ConvNeXt-V2 ({len(wrong)} in all).")
    return ConvNextV2Features(network)


def _standardise(maps: Tensor) -> Tensor:
    """Bring the channels of each position to mean 0 and standard deviation 1, [B, C, H, W]."""
    maps = maps.float()
    mean = maps.mean(dim=1, keepdim=True)
    return (maps - mean) / (maps.std(dim=1, keepdim=True, correction=0) + _STANDARD_EPS)
