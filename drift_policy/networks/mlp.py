"""Residual MLP on the flattened action chunk: the smallest and fastest generator, for state observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import require
from drift_policy.networks.base import ActionNetwork
from drift_policy.networks.embeddings import StepEncoder


@dataclass
class MlpConfig:
    """Settings of `Mlp`.

    Raises:
        ConfigurationError: a value is out of range.
    """

    width: int = 256  # features in every layer
    depth: int = 6  # residual blocks of two linear layers each
    conditioning: str = "concat"  # "concat": observation at the input; "film": also scales and shifts hidden layers
    layer_norm: bool = False  # normalise the input of each residual block
    dropout: float = 0.0  # probability of dropping a hidden number while training
    diffusion_step_embed_dim: int = 64  # size of the time embedding; unused by one-step heads
    # Initial weights of the last layer, which set how far apart the first samples of an observation lie: drift starts
    # that are narrow against the distance of two modes keep one of them.
    output_init_std: float = 0.01

    def __post_init__(self) -> None:
        require(self.width >= 1, f"mlp: width is {self.width}; give at least 1.")
        require(self.depth >= 1, f"mlp: depth is {self.depth}; give at least 1 block.")
        require(
            self.conditioning in ("concat", "film"),
            f"mlp: conditioning is {self.conditioning!r}; choose 'concat' or 'film'.",
        )
        require(self.output_init_std >= 0, f"mlp: output_init_std is {self.output_init_std}; give at least 0.")
        require(0.0 <= self.dropout < 1.0, f"mlp: dropout is {self.dropout}; give a probability in [0, 1).")
        require(
            self.diffusion_step_embed_dim >= 4 and self.diffusion_step_embed_dim % 2 == 0,
            f"mlp: diffusion_step_embed_dim is {self.diffusion_step_embed_dim}; give an even number of at least 4.",
        )


class ResidualBlock(nn.Module):
    """x + Linear(film(SiLU(Linear(norm(x))))), norm and film being optional."""

    def __init__(self, width: int, *, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.linear_in = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(width, width)

    def forward(self, x: Tensor, film: Tensor | None) -> Tensor:
        """Transform x [B, G, width]; film [B, G or 1, 2 * width] holds scale - 1, then shift, of the hidden layer."""
        hidden = functional.silu(self.linear_in(self.norm(x)))
        if film is not None:
            scale, shift = film.chunk(2, dim=-1)
            hidden = hidden * (1.0 + scale) + shift
        residual: Tensor = self.linear_out(self.dropout(hidden))
        return x + residual


class Mlp(ActionNetwork):
    """Residual MLP.

    The input layer is a linear layer on the concatenated sample and observation, split in two so that the observation's
    part is computed once for its G samples. With the defaults, a condition of 40 numbers and a chunk of 16 x 2: 816,416
    parameters.
    """

    def __init__(
        self, config: MlpConfig, *, horizon: int, action_dim: int, condition_dim: int, time_conditioned: bool
    ) -> None:
        super().__init__(
            horizon=horizon, action_dim=action_dim, condition_dim=condition_dim, time_conditioned=time_conditioned
        )
        width, depth, chunk_size = config.width, config.depth, horizon * action_dim
        self.depth = depth
        self.sample_projection = nn.Linear(chunk_size, width, bias=False)
        self.condition_projection = nn.Linear(condition_dim, width)
        self.step_encoder: nn.Sequential | None = None
        if time_conditioned:
            step_dim = config.diffusion_step_embed_dim
            self.step_encoder = nn.Sequential(StepEncoder(step_dim), nn.Linear(step_dim, width, bias=False))
        self.film: nn.Linear | None = None
        if config.conditioning == "film":
            self.film = nn.Linear(width, depth * 2 * width)
            # Scale 1 and shift 0: training starts from the "concat" network.
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, layer_norm=config.layer_norm, dropout=config.dropout) for _ in range(depth)
        )
        self.output = nn.Linear(width, chunk_size)
        nn.init.normal_(self.output.weight, std=config.output_init_std)
        nn.init.zeros_(self.output.bias)

    def generate(self, sample: Tensor, condition: Tensor, time: Tensor | None) -> Tensor:
        """Compute forward's result from checked inputs."""
        embedding = self.condition_projection(condition).unsqueeze(1)
        if self.step_encoder is not None:
            embedding = embedding + self.step_encoder(time)
        films: Sequence[Tensor | None] = [None] * self.depth
        if self.film is not None:
            films = self.film(functional.silu(embedding)).chunk(self.depth, dim=-1)
        x = self.sample_projection(sample.flatten(2)) + embedding
        for block, film in zip(self.blocks, films, strict=True):
            x = block(x, film)
        chunks: Tensor = self.output(functional.silu(x))
        return chunks.view_as(sample)
