"""Drawing images from a trained generator: drifting models by one evaluation, flow models by several steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drift_policy.errors import ConfigurationError, require
from image_gen.artifacts import load_model
from image_gen.baselines.flow import integrate_flow
from image_gen.classes import Classes, stored_classes
from image_gen.models import DiT
from image_gen.tokenizers import Tokenizer, build_tokenizer

DRIFT, FLOW = "drift", "flow"
_SEEDS = 2**32  # with a multiple of it and the number of an image, a generator's 64 bits are far from full


def require_seed(seed: int) -> None:
    """Require a seed that images can be drawn with.

    Raises:
        ConfigurationError: it is negative or too large.
    """
    require(0 <= seed < _SEEDS, f"seed must be from 0 to {_SEEDS - 1}, but is {seed}.")


@dataclass
class Sampler:
    """A generator with what turns its output into images.

    Draws are functions of the seed and the number of the image, whatever the batch.
    """

    generator: DiT
    tokenizer: Tokenizer | None  # None: outputs stay latents
    method: str = DRIFT  # "drift" or "flow"
    cfg_scale: float = 1.0  # of a drifting model
    flow_steps: int = 50  # network evaluations of a flow model
    class_names: list[str] | None = None  # one a class; None if they are unknown

    @property
    def classes(self) -> Classes:
        """What can be drawn."""
        return Classes(self.generator.config.num_classes, self.class_names)

    @property
    def num_evaluations(self) -> int:
        """Network evaluations an image takes."""
        return 1 if self.method == DRIFT else self.flow_steps

    @property
    def device(self) -> torch.device:
        """Where images are drawn."""
        return next(self.generator.parameters()).device

    @property
    def image_size(self) -> int:
        """Side of what is drawn: of an image in pixels, or of a latent without tokenizer."""
        return self.generator.config.input_size * (1 if self.tokenizer is None else self.tokenizer.factor)

    @property
    def image_channels(self) -> int:
        """Channels of what is drawn: of an image in pixels, or of a latent without tokenizer."""
        return self.generator.config.out_channels if self.tokenizer is None else self.tokenizer.image_channels

    @torch.inference_mode()
    def draw(self, class_ids: Tensor, seed: int, first: int = 0) -> Tensor:
        """Draw images (latents without tokenizer).

        Args:
            class_ids: class of each, integers [B].
            seed: of noise and styles.
            first: number of the first image among all that are drawn with this seed.

        Returns:
            [B, C, H, W]; images about in [-1, 1], not clipped.
        """
        config = self.generator.config
        device = self.device
        noise, styles = [], []
        for number in range(first, first + len(class_ids)):
            source = torch.Generator().manual_seed(seed * 1_000_003 + number)
            noise.append(torch.randn(1, config.in_channels, config.input_size, config.input_size, generator=source))
            styles.append(self.generator.draw_noise_labels(1, "cpu", source))
        inputs = (torch.cat(noise).to(device), class_ids.to(device))
        labels = torch.cat(styles).to(device)
        if self.method == FLOW:
            drawn = integrate_flow(self.generator, *inputs, labels, self.flow_steps)
        else:
            drawn = self.generator(*inputs, self.cfg_scale, labels)
        return drawn.float() if self.tokenizer is None else self.tokenizer.decode(drawn.float())

    def stream(self, class_ids: Tensor, seed: int, batch_size: int) -> Iterator[Tensor]:
        """Draw images in batches."""
        for start in range(0, len(class_ids), batch_size):
            yield self.draw(class_ids[start : start + batch_size], seed, start)


def load_sampler(
    source: str | Path,
    device: torch.device,
    *,
    tokenizer: str | None = None,
    tokenizer_weights: str | None = None,
    cfg_scale: float = 1.0,
    flow_steps: int = 50,
) -> tuple[Sampler, dict[str, Any]]:
    """Return a sampler and the metadata of its generator.

    Args:
        source: what `image_gen.load_generator` takes.
        device: where to draw.
        tokenizer: space of the generator; absent: as the training noted it, and for released weights "sd_vae" with
            4 channels and "pixels" with 3.
        tokenizer_weights: folder of its weights.
        cfg_scale: guidance scale of a drifting model.
        flow_steps: network evaluations of a flow model.

    Raises:
        ConfigurationError: settings that do not fit.
        CheckpointError, DataError: weights are missing or damaged.
    """
    require(cfg_scale >= 1, f"cfg_scale must be at least 1, but is {cfg_scale}.")
    require(flow_steps >= 1, f"flow_steps must be at least 1, but is {flow_steps}.")
    generator, metadata = load_model(source, "generator")
    assert isinstance(generator, DiT)  # load_model has checked the kind
    channels = generator.config.out_channels
    if tokenizer is None:
        released = {3: "pixels", 4: "sd_vae"}
        name = metadata.get("tokenizer") or released.get(channels)
        if not isinstance(name, str):
            raise ConfigurationError(f"{source} does not say which space its {channels} channels are: tokenizer=... .")
        tokenizer, tokenizer_weights = name, tokenizer_weights or metadata.get("tokenizer_weights")
    decoder = build_tokenizer(tokenizer, tokenizer_weights, channels if tokenizer == "pixels" else 3)
    if decoder.latent_channels != channels:
        raise ConfigurationError(
            f"The tokenizer {tokenizer} has {decoder.latent_channels} channels, but the generator draws {channels}."
        )
    method = str(metadata.get("method", DRIFT))
    require(
        method == DRIFT or cfg_scale == 1, f"cfg_scale={cfg_scale}, but {source} is a {method} model: leave it at 1."
    )
    names = stored_classes(metadata, generator.config.num_classes).names
    sampler = Sampler(generator.to(device), decoder.to(device), method, cfg_scale, flow_steps, names)
    return sampler, metadata
