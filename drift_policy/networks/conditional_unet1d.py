"""Diffusion Policy's 1-D U-Net over the steps of the action chunk (Chi et al. 2023, arXiv:2303.04137).

With `time_conditioned=True` the parameters have the shapes, the count and the state-dict order of Diffusion Policy's
`ConditionalUnet1D` with global conditioning (no local conditioning), so that its weights map one to one by position:

| here                                  | Diffusion Policy                              |
| ------------------------------------- | --------------------------------------------- |
| mid_blocks.{i}                        | mid_modules.{i}                               |
| step_encoder                          | diffusion_step_encoder                        |
| up_levels.{i}.block_1, block_2        | up_modules.{i}.0, .1                          |
| up_levels.{i}.resample                | up_modules.{i}.2.conv                         |
| down_levels.{i} (the same three)      | down_modules.{i}                              |
| output                                | final_conv                                    |
| in a block: conv_1, conv_2            | blocks.0.block, blocks.1.block                |
| in a block: film, skip                | cond_encoder.1, residual_conv                 |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import require
from drift_policy.networks.base import ActionNetwork
from drift_policy.networks.embeddings import StepEncoder


@dataclass
class ConditionalUnet1dConfig:
    """Settings of `ConditionalUnet1d`; the defaults are Diffusion Policy's for state observations.

    Raises:
        ConfigurationError: a value is out of range.
    """

    down_dims: list[int] = field(default_factory=lambda: [256, 512, 1024])  # channels of each level, finest first
    kernel_size: int = 5  # steps each convolution sees; odd
    n_groups: int = 8  # groups of each group normalisation; divides every level's channels
    diffusion_step_embed_dim: int = 256  # size of the time embedding; unused by one-step heads
    cond_predict_scale: bool = True  # the condition scales and shifts features (FiLM); False: shifts only

    def __post_init__(self) -> None:
        require(len(self.down_dims) >= 1, "conditional_unet1d: down_dims is empty; give the channels of each level.")
        require(
            self.kernel_size >= 1 and self.kernel_size % 2 == 1,
            f"conditional_unet1d: kernel_size is {self.kernel_size}; give an odd number.",
        )
        require(self.n_groups >= 1, f"conditional_unet1d: n_groups is {self.n_groups}; give at least 1.")
        # A group of one channel at a horizon of one step would normalise a single number to zero.
        require(
            all(dim >= 2 * self.n_groups and dim % self.n_groups == 0 for dim in self.down_dims),
            f"conditional_unet1d: down_dims is {list(self.down_dims)}; each must be a multiple of "
            f"n_groups={self.n_groups} and at least {2 * self.n_groups}.",
        )
        require(
            self.diffusion_step_embed_dim >= 4 and self.diffusion_step_embed_dim % 2 == 0,
            f"conditional_unet1d: diffusion_step_embed_dim is {self.diffusion_step_embed_dim}; "
            "give an even number of at least 4.",
        )


class ConvBlock(nn.Sequential):
    """Convolution over steps, group normalisation, Mish: [N, in_channels, T] -> [N, out_channels, T]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int) -> None:
        super().__init__(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )


class FilmResidualBlock(nn.Module):
    """Two convolution blocks with FiLM between them (Perez et al. 2018) and a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, film_dim: int, config: ConditionalUnet1dConfig) -> None:
        super().__init__()
        self.predict_scale = config.cond_predict_scale
        self.conv_1 = ConvBlock(in_channels, out_channels, config.kernel_size, config.n_groups)
        self.conv_2 = ConvBlock(out_channels, out_channels, config.kernel_size, config.n_groups)
        self.film = nn.Linear(film_dim, out_channels * (2 if self.predict_scale else 1))
        self.skip = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, film_input: Tensor) -> Tensor:
        """Transform x [B*G, in_channels, T] to [B*G, out_channels, T]; film_input [B, G or 1, film_dim]."""
        film = self.film(film_input).unsqueeze(-1)
        hidden = self.conv_1(x).unflatten(0, (film.shape[0], -1))
        if self.predict_scale:
            scale, shift = film.chunk(2, dim=2)
            hidden = torch.addcmul(shift, scale, hidden)
        else:
            hidden = hidden + film
        result: Tensor = self.conv_2(hidden.flatten(0, 1)) + self.skip(x)
        return result


class UnetLevel(nn.Module):
    """Two residual blocks at one resolution, then a change of resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        film_dim: int,
        config: ConditionalUnet1dConfig,
        resample: nn.Module,
    ) -> None:
        super().__init__()
        self.block_1 = FilmResidualBlock(in_channels, out_channels, film_dim, config)
        self.block_2 = FilmResidualBlock(out_channels, out_channels, film_dim, config)
        self.resample = resample

    def forward(self, x: Tensor, film_input: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features before and after the change of resolution."""
        features = self.block_2(self.block_1(x, film_input), film_input)
        return features, self.resample(features)


class ConditionalUnet1d(ActionNetwork):
    """1-D U-Net with FiLM conditioning.

    Any horizon works: the chunk is padded with its last step to a multiple of 2^(levels - 1) and the result cropped.
    With `time_conditioned=False` the step encoder and its part of the FiLM input are left out.
    """

    def __init__(
        self,
        config: ConditionalUnet1dConfig,
        *,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        time_conditioned: bool,
    ) -> None:
        super().__init__(
            horizon=horizon, action_dim=action_dim, condition_dim=condition_dim, time_conditioned=time_conditioned
        )
        dims = list(config.down_dims)
        self.n_padding = -horizon % 2 ** (len(dims) - 1)
        film_dim = condition_dim + (config.diffusion_step_embed_dim if time_conditioned else 0)

        # Registered in the order of Diffusion Policy's state dict, not in the order of use.
        self.mid_blocks = nn.ModuleList(FilmResidualBlock(dims[-1], dims[-1], film_dim, config) for _ in range(2))
        self.step_encoder = StepEncoder(config.diffusion_step_embed_dim) if time_conditioned else None
        self.up_levels = nn.ModuleList(
            UnetLevel(2 * coarse, fine, film_dim, config, nn.ConvTranspose1d(fine, fine, 4, stride=2, padding=1))
            for fine, coarse in reversed(list(zip(dims[:-1], dims[1:], strict=True)))
        )
        self.down_levels = nn.ModuleList()
        for level, (previous, dim) in enumerate(zip([action_dim, *dims[:-1]], dims, strict=True)):
            is_coarsest = level == len(dims) - 1
            resample = nn.Identity() if is_coarsest else nn.Conv1d(dim, dim, 3, stride=2, padding=1)
            self.down_levels.append(UnetLevel(previous, dim, film_dim, config, resample))
        self.output = nn.Sequential(
            ConvBlock(dims[0], dims[0], config.kernel_size, config.n_groups), nn.Conv1d(dims[0], action_dim, 1)
        )

    def generate(self, sample: Tensor, condition: Tensor, time: Tensor | None) -> Tensor:
        """Compute forward's result from checked inputs."""
        batch, n_samples = sample.shape[:2]
        film_input = condition.unsqueeze(1)
        if self.step_encoder is not None:
            film_input = torch.cat((self.step_encoder(time), film_input.expand(-1, n_samples, -1)), dim=-1)
        # Every block applies Mish to the same vector before its own linear layer, so it is applied once here.
        film_input = functional.mish(film_input)

        x = sample.flatten(0, 1).transpose(1, 2)
        if self.n_padding:
            x = functional.pad(x, (0, self.n_padding), mode="replicate")
        skips = []
        for level in self.down_levels:
            features, x = level(x, film_input)
            skips.append(features)
        for block in self.mid_blocks:
            x = block(x, film_input)
        for level in self.up_levels:
            _, x = level(torch.cat((x, skips.pop()), dim=1), film_input)
        chunks: Tensor = self.output(x)[..., : self.horizon].transpose(1, 2)
        return chunks.reshape(batch, n_samples, self.horizon, self.action_dim)
