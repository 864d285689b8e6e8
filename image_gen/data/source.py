"""The images of a data set with the tokenizer that makes latents of them, and the sizes that both agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drift_policy.errors import ConfigurationError, require
from image_gen.data.base import ImageSet
from image_gen.data.build import DATASETS, build_image_set
from image_gen.tokenizers import Tokenizer, build_tokenizer


@dataclass(frozen=True)
class ImageSource:
    """Images that are to become latents (or to stay pixels)."""

    images: ImageSet
    image_size: int  # side in pixels that images are brought to
    tokenizer: Tokenizer
    latent_shape: tuple[int, int, int]  # C, h, w


def open_source(
    name: str,
    split: str,
    path: str | Path | None,
    *,
    image_size: int | None,
    tokenizer: str,
    tokenizer_weights: str | Path | None,
    prefix: str = "",
) -> ImageSource:
    """Open a data set and its tokenizer.

    Args:
        name: see `build_image_set`.
        split: see `build_image_set`.
        path: see `build_image_set`.
        image_size: side in pixels; None is the data set's own.
        tokenizer: see `build_tokenizer`.
        tokenizer_weights: see `build_tokenizer`.
        prefix: of the settings in messages, such as "dataset.".

    Raises:
        ConfigurationError: settings that do not fit together.
        DataError, CheckpointError: images or weights are missing or damaged.
    """
    # The command that makes a cache has a data set's name where others have its settings.
    images = build_image_set(name, split, path, f"{prefix}path" if prefix else "data_path")
    size = image_size or DATASETS[name].image_size
    if size is None:
        raise ConfigurationError(f"The data set {name!r} has no size of its own: set {prefix}image_size=... .")
    built = build_tokenizer(tokenizer, tokenizer_weights, images.channels, prefix)
    require(
        size % built.factor == 0,
        f"{prefix}image_size={size} must be a multiple of {built.factor}, the step of the tokenizer {tokenizer}.",
    )
    side = size // built.factor
    return ImageSource(images, size, built, (built.latent_channels, side, side))
