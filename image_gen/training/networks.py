"""Networks that fit the data: sizes that the data decide are filled in, the rest comes from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift_policy.errors import ConfigurationError
from image_gen.encoders.base import CombinedFeatures, DecodedFeatures, FeatureExtractor
from image_gen.encoders.mae import MaeFeatures
from image_gen.feature_maps import FeatureSettings
from image_gen.models import MAE, DiT, build_generator, build_mae
from image_gen.tokenizers import build_tokenizer
from image_gen.training.config import FeatureConfig
from image_gen.training.drift_objective import InputFeatures
from image_gen.training.samples import RealSamples


def generator_for(samples: RealSamples, model: Mapping[str, Any]) -> DiT:
    """Build the generator of a configuration, with the channels, size and classes of the data.

    Raises:
        ConfigurationError: unknown settings, sizes that do not fit together, or images that are not square.
    """
    channels, height, width = samples.sample_shape
    if height != width:
        raise ConfigurationError(f"A generator draws squares, but the data are {height} x {width}.")
    name, changes = _name_and_changes(model, "model")
    decided = {
        "in_channels": channels,
        "out_channels": channels,
        "input_size": height,
        "num_classes": samples.num_classes,
    }
    return build_generator(name, **(decided | changes))


def mae_for(samples: RealSamples, model: Mapping[str, Any]) -> MAE:
    """Build the masked autoencoder of a configuration, with the channels and classes of the data.

    Raises:
        ConfigurationError: unknown settings, or sizes that do not fit together.
    """
    name, changes = _name_and_changes(model, "mae.model")
    return build_mae(name, **({"in_channels": samples.sample_shape[0], "num_classes": samples.num_classes} | changes))


def features_for(samples: RealSamples, config: FeatureConfig, mae: MAE | None) -> FeatureExtractor:
    """Return the frozen encoders of a configuration.

    Args:
        samples: whose space they must take.
        config: see `FeatureConfig`.
        mae: the trained autoencoder; None with encoder "none".

    Raises:
        ConfigurationError: an autoencoder of another space, or ConvNeXt-V2 on grey images.
        CheckpointError: the weights of ConvNeXt-V2 are missing.
    """
    extractors: list[FeatureExtractor] = []
    if mae is not None:
        channels = samples.sample_shape[0]
        if mae.config.in_channels != channels:
            raise ConfigurationError(
                f"The MAE takes {mae.config.in_channels} channels, but the data have {channels}: give an MAE that was "
                "trained in the same space, feature.mae=... ."
            )
        settings = FeatureSettings(
            every_k_block=config.every_k_block,
            use_mean=config.use_mean,
            use_std=config.use_std,
            patch_mean_size=list(config.patch_mean_size),
            patch_std_size=list(config.patch_std_size),
        )
        mae.encoder.activation_checkpointing = config.activation_checkpointing
        extractors.append(MaeFeatures(mae, settings))
    if config.convnext is not None:
        extractors.append(_convnext_for(samples, config.convnext))
    if not extractors:
        return InputFeatures()
    return extractors[0] if len(extractors) == 1 else CombinedFeatures(extractors)


def _convnext_for(samples: RealSamples, weights: str) -> FeatureExtractor:
    """Return ConvNeXt-V2, behind the decoder of the space where the generator draws latents."""
    is_pixels = samples.tokenizer == "pixels"
    if is_pixels and samples.sample_shape[0] != 3:
        raise ConfigurationError(
            f"feature.convnext takes colour images, but the data have {samples.sample_shape[0]} channel(s): set "
            "feature.convnext=null."
        )
    # Imported here: it needs packages that training with an MAE does not.
    from image_gen.encoders.convnext import load_convnext_v2

    convnext = load_convnext_v2(weights)
    if is_pixels:
        return convnext
    return DecodedFeatures(build_tokenizer(samples.tokenizer, samples.tokenizer_weights), convnext)


def _name_and_changes(values: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    changes = dict(values)
    name = changes.pop("name", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{where}.name has no value: it says which size to build.")
    return name, changes
