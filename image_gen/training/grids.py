"""The pictures of samples that a training leaves: the averaged network on noise that stays the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from drift_policy.errors import UserError
from image_gen.models import DiT
from image_gen.pictures import draw_grid, write_png
from image_gen.sampling import Sampler
from image_gen.tokenizers import Tokenizer, build_tokenizer
from image_gen.training.config import PictureConfig
from image_gen.training.samples import RealSamples

_SEED = 1_000_000  # of the noise: its own, so that pictures of all runs can be compared


class SampleGrid:
    """Draws one column per class.

    Args:
        run_dir: pictures go to <run_dir>/samples/.
        samples: the data, which say how latents become images.
        config: see `PictureConfig`.
        method: "drift" or "flow".
        say: prints a line.
    """

    def __init__(
        self, run_dir: Path, samples: RealSamples, config: PictureConfig, method: str, say: Callable[[str], None]
    ) -> None:
        self._folder, self._config, self._method, self._say = run_dir / "samples", config, method, say
        self._tokenizer = self._open(samples)
        self._columns = min(config.classes, samples.num_classes)

    def draw(self, network: DiT, step: int) -> None:
        """Write step_<number>.png (three-channel or grey images), or nothing where latents cannot be decoded."""
        if self._tokenizer is None:
            return
        class_ids = torch.arange(self._columns).repeat(self._config.per_class)
        tokenizer = self._tokenizer.to(next(network.parameters()).device)
        sampler = Sampler(network, tokenizer, self._method, self._config.cfg_scale, self._config.flow_steps)
        images = torch.cat(list(sampler.stream(class_ids, _SEED, batch_size=64)))
        write_png(draw_grid(images, self._columns), self._folder / f"step_{step:08d}.png")

    def _open(self, samples: RealSamples) -> Tokenizer | None:
        channels = samples.sample_shape[0] if samples.tokenizer == "pixels" else 3
        try:
            return build_tokenizer(samples.tokenizer, samples.tokenizer_weights, channels, "dataset.")
        except UserError as error:  # training on latents does not need what decodes them
            self._say(f"samples  no pictures while training: {error}")
            self._say("         give dataset.tokenizer_weights=<folder> to have them")
            return None
