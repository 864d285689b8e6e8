"""Tokenizers by name."""

from __future__ import annotations

from pathlib import Path

from drift_policy.errors import ConfigurationError
from image_gen.data.location import find_data
from image_gen.tokenizers.base import Tokenizer
from image_gen.tokenizers.pixels import Pixels
from image_gen.tokenizers.taef2 import HOW_TO_GET, Taef2

TOKENIZERS = ("pixels", "taef2", "sd_vae")


def build_tokenizer(
    name: str, weights: str | Path | None = None, image_channels: int = 3, prefix: str = ""
) -> Tokenizer:
    """Return a frozen tokenizer.

    Args:
        name: "pixels", "taef2" or "sd_vae".
        weights: folder of the weights (for sd_vae also a name on the Hugging Face Hub); the data folder's or the
            default ones if absent. Pixels have none.
        image_channels: of pixels.
        prefix: of the settings in messages, such as "dataset.".

    Raises:
        ConfigurationError: an unknown name, weights for pixels, or channels that the autoencoder does not have.
        CheckpointError, DataError: the weights are missing or damaged.
    """
    if name not in TOKENIZERS:
        raise ConfigurationError(f"Unknown tokenizer {name!r}; expected one of {', '.join(TOKENIZERS)}.")
    if name == "pixels":
        if weights is not None:
            raise ConfigurationError(
                f"The tokenizer 'pixels' has no weights, but {prefix}tokenizer_weights={weights}: leave it out."
            )
        return Pixels(image_channels)
    if name == "taef2":
        tokenizer: Tokenizer = Taef2(find_data("taef2", weights, HOW_TO_GET))
    else:
        from image_gen.tokenizers.sd_vae import DEFAULT_WEIGHTS, load_sd_vae

        tokenizer = load_sd_vae(DEFAULT_WEIGHTS if weights is None else weights, prefix)
    if tokenizer.image_channels != image_channels:
        raise ConfigurationError(
            f"The tokenizer {name!r} takes images with {tokenizer.image_channels} channels, but the data have "
            f"{image_channels}: use {prefix}tokenizer=pixels, or colour images."
        )
    return tokenizer
