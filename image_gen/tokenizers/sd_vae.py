"""The Stable Diffusion autoencoder (Rombach et al. 2022), 8x down, 4 channels: the paper's latent space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drift_policy.errors import CheckpointError
from drift_policy.hub_download import folder_of_weights
from image_gen.tokenizers.base import Randomness, Tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DEFAULT_WEIGHTS = "stabilityai/sd-vae-ft-mse"  # the decoder fine-tuned for mean squared error, which the paper uses
SCALE = 0.18215  # brings the latents to about unit variance


class SdVae(Tokenizer):
    """diffusers' AutoencoderKL with latents scaled by 0.18215. Latents are drawn from the encoder's distribution.

    Args:
        vae: a diffusers AutoencoderKL; see `load_sd_vae`.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        config = vae.config
        factor = 2 ** (len(config.block_out_channels) - 1)
        super().__init__(config.in_channels, config.latent_channels, factor)
        self.vae = vae
        self.freeze()

    def _encode(self, images: Tensor, generator: Randomness) -> Tensor:
        return self.vae.encode(images).latent_dist.sample(generator) * SCALE

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / SCALE).sample


def load_sd_vae(weights: str | Path = DEFAULT_WEIGHTS, prefix: str = "") -> SdVae:
    """Return the autoencoder with its weights.

    Args:
        weights: a folder with config.json and diffusion_pytorch_model.safetensors, or a name on the Hugging Face Hub.
        prefix: of the settings in messages, such as "dataset.".

    Raises:
        CheckpointError: diffusers is missing, or the weights are neither there nor downloadable.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise CheckpointError(
            "The Stable Diffusion VAE needs diffusers: pip install 'drift-policy[images]'."
        ) from error
    try:
        folder = folder_of_weights(weights, ("config.json", "diffusion_pytorch_model.safetensors"))
        vae, info = AutoencoderKL.from_pretrained(
            str(folder), use_safetensors=True, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, CheckpointError) as error:
        raise CheckpointError(
            f"The weights of the Stable Diffusion VAE cannot be read from {weights} "
            f"({str(error).strip().splitlines()[0].rstrip('.')}). Where there is a network, get them with\n"
            f"  hf download {DEFAULT_WEIGHTS} --local-dir sd-vae-ft-mse\n"
            f"and set {prefix}tokenizer_weights=sd-vae-ft-mse."
        ) from error
    # diffusers draws what it does not find at random, and only warns.
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise CheckpointError(f"{weights} has no usable weights for {wrong[0]} of the VAE ({len(wrong)} in all).")
    return SdVae(vae)
