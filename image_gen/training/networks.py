"""Networks that fit the data: sizes that the data decide are filled in, the rest comes from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift_policy.errors import ConfigurationError, require
from image_gen.encoders.base import CombinedFeatures, DecodedFeatures, FeatureExtractor, RecomputedFeatures
from image_gen.encoders.mae import MaeFeatures
from image_gen.encoders.own import load_own_encoder
from image_gen.feature_maps import FeatureSettings
from image_gen.models import MAE, DiT, build_generator, build_mae
from image_gen.tokenizers import build_tokenizer
from image_gen.training.config import FeatureConfig, OwnEncoderConfig
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


def mae_for(samples: RealSamples, model: Mapping[str, Any], where: str = "mae.model") -> MAE:
    """Build the masked autoencoder of a configuration, with the channels and classes of the data.

    Args:
        samples: the data.
        model: `name` of a size, and changes of its settings.
        where: what the user calls `model`, for messages.

    Raises:
        ConfigurationError: unknown settings, or sizes that do not fit together.
    """
    name, changes = _name_and_changes(model, where)
    return build_mae(name, **({"in_channels": samples.sample_shape[0], "num_classes": samples.num_classes} | changes))


def features_for(samples: RealSamples, config: FeatureConfig, mae: MAE | None) -> FeatureExtractor:
    """Return the frozen encoders of a configuration.

    Args:
        samples: whose space they must take.
        config: see `FeatureConfig`.
        mae: the trained autoencoder; None with encoder "none".

    Raises:
        ConfigurationError: an autoencoder of another space, ConvNeXt-V2 on grey images, or an own encoder that cannot
            be built or takes other channels.
        CheckpointError: the weights of ConvNeXt-V2 or of the own encoder are missing or damaged.
    """
    settings = config.of_maps
    extractors: list[FeatureExtractor] = []
    if mae is not None:
        channels = samples.sample_shape[0]
        if mae.config.in_channels != channels:
            raise ConfigurationError(
                f"The MAE takes {mae.config.in_channels} channels, but the data have {channels}: give an MAE that was "
                "trained in the same space, feature.mae=... ."
            )
        extractors.append(MaeFeatures(mae, settings))
    if config.convnext is not None:
        extractors.append(_convnext_for(samples, config.convnext))
    if config.own.factory is not None:
        extractors.append(_own_for(samples, config.own, settings))
    if not extractors:
        return InputFeatures()
    features = extractors[0] if len(extractors) == 1 else CombinedFeatures(extractors)
    return RecomputedFeatures(features, config.checkpoint_size) if config.activation_checkpointing else features


def _convnext_for(samples: RealSamples, weights: str) -> FeatureExtractor:
    """Return ConvNeXt-V2, behind the decoder of the space where the generator draws latents."""
    if samples.tokenizer == "pixels" and samples.sample_shape[0] != 3:
        raise ConfigurationError(
            f"feature.convnext takes colour images, but the data have {samples.sample_shape[0]} channel(s): set "
            "feature.convnext=null."
        )
    # Imported here: it needs packages that training with an MAE does not.
    from image_gen.encoders.convnext import load_convnext_v2

    convnext = load_convnext_v2(weights)
    return _behind_decoder(samples, convnext)


def _own_for(samples: RealSamples, own: OwnEncoderConfig, settings: FeatureSettings) -> FeatureExtractor:
    """Return the network of the user, behind the decoder of the space where the generator draws latents."""
    channels = samples.sample_shape[0] if samples.tokenizer == "pixels" else 3
    require(
        len(own.mean) == channels,
        f"feature.own.mean and feature.own.std hold {len(own.mean)} number(s), but images of the data have {channels} "
        "channel(s): give one for each.",
    )
    assert own.factory is not None  # the caller has asked
    encoder = load_own_encoder(
        own.factory,
        own.weights,
        own.layers,
        image_size=own.image_size,
        mean=own.mean,
        std=own.std,
        settings=settings,
    )
    return _behind_decoder(samples, encoder)


def _behind_decoder(samples: RealSamples, encoder: FeatureExtractor) -> FeatureExtractor:
    """Let an encoder of images take what the generator draws."""
    if samples.tokenizer == "pixels":
        return encoder
    return DecodedFeatures(build_tokenizer(samples.tokenizer, samples.tokenizer_weights, prefix="dataset."), encoder)


def _name_and_changes(values: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    changes = dict(values)
    name = changes.pop("name", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{where}.name has no value: it says which size to build.")
    return name, changes
