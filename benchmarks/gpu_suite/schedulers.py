"""DDPM and DDIM from tables, in plain PyTorch: for machines without diffusers, and for CUDA graphs.

The tables are exported from diffusers' schedulers by `benchmarks.gpu_suite.prepare`, number by number in the precision
and order in which those compute, so that both give the same samples.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError
from drift_policy.heads import HEADS, Generators, HeadKind
from drift_policy.heads.diffusion import DiffusionHead, DiffusionHeadConfig


class TableRow(NamedTuple):
    """The numbers of one denoising step."""

    time: float  # step number that the network is told
    noise_part: float  # of the noisy chunk: sqrt(1 - a), a being the product of all alphas up to here
    clean_part: float  # of the noisy chunk: sqrt(a)
    from_clean: float  # what the next chunk takes of the predicted clean chunk,
    from_chunk: float  # of the present chunk,
    from_predicted: float  # of the predicted noise,
    from_fresh: float  # and of fresh noise


@dataclass(frozen=True)
class DiffusionTable:
    """A noise schedule and the steps of a sampler."""

    config: DiffusionHeadConfig  # what it is a table of
    alphas: NDArray[np.float32]  # products of the alphas up to each training step, [N]
    steps: NDArray[np.float64]  # one `TableRow` for each denoising step, in their order, [S, 7]


class Denoised(NamedTuple):
    """The result of a denoising step, under the name that diffusers gives it."""

    prev_sample: Tensor


class TabulatedScheduler(nn.Module):
    """Stands in for diffusers' DDPMScheduler and DDIMScheduler in a `DiffusionHead`.

    Args:
        table: of the schedule and the sampler.
    """

    signal: Tensor
    noise: Tensor

    def __init__(self, table: DiffusionTable) -> None:
        super().__init__()
        alphas = torch.from_numpy(table.alphas)
        # Not part of a checkpoint: a policy's tensors are the same with either scheduler.
        self.register_buffer("signal", alphas.sqrt(), persistent=False)
        self.register_buffer("noise", (1 - alphas).sqrt(), persistent=False)
        rows = [TableRow(*row) for row in table.steps.tolist()]
        self.timesteps = torch.tensor([int(row.time) for row in rows])
        self._rows = {int(row.time): row for row in rows}
        self._clip = table.config.clip_sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mix chunks [B, G, Tp, Da] with noise of the same shape as at the training steps [B]."""
        signal, amount = (part[timesteps].view(-1, 1, 1, 1) for part in (self.signal, self.noise))
        return signal * original_samples + amount * noise

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, generator: Generators = None) -> Denoised:
        """Do one denoising step.

        Args:
            model_output: the predicted noise, [B, G, Tp, Da].
            timestep: one of `timesteps`.
            sample: the present chunks, [B, G, Tp, Da].
            generator: source of the fresh noise of DDPM, one for all observations or one for each.
        """
        row = self._rows[timestep]
        clean = (sample - row.noise_part * model_output) / row.clean_part
        if self._clip:
            clean = clean.clamp(-1.0, 1.0)
        result = row.from_clean * clean
        if row.from_chunk:
            result = result + row.from_chunk * sample
        if row.from_predicted:
            result = result + row.from_predicted * model_output
        if row.from_fresh:
            result = result + row.from_fresh * _fresh_noise(sample, generator)
        return Denoised(result)


@contextmanager
def tabulated_diffusion(tables: Mapping[str, DiffusionTable]) -> Iterator[None]:
    """Let the diffusion heads that are built inside denoise by `tables` instead of by diffusers.

    Raises:
        ConfigurationError: on building a head whose settings no table was made for.
    """

    class TabulatedDiffusionHead(DiffusionHead):
        """The diffusion head without diffusers."""

        @staticmethod
        def make_scheduler(config: DiffusionHeadConfig) -> Any:
            """Return the scheduler of the table for these settings."""
            return TabulatedScheduler(_find_table(tables, config))

    ordinary = HEADS["diffusion"]
    HEADS["diffusion"] = HeadKind(DiffusionHeadConfig, TabulatedDiffusionHead)
    try:
        yield
    finally:
        HEADS["diffusion"] = ordinary


def _find_table(tables: Mapping[str, DiffusionTable], config: DiffusionHeadConfig) -> DiffusionTable:
    for table in tables.values():
        if table.config == config:
            return table
    raise ConfigurationError(f"The prepared file has tables of {', '.join(tables)}, but none for {config}.")


def _fresh_noise(like: Tensor, generator: Generators) -> Tensor:
    """Draw standard normal noise with the shape of `like` [B, G, Tp, Da] where the generator is, then move it."""
    if isinstance(generator, list):
        drawn = [_fresh_noise(like[:1], source) for source in generator]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
    source = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=source, dtype=like.dtype).to(like.device)
