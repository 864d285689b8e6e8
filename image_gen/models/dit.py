"""The generator: a diffusion transformer (DiT) that maps noise to an image or latent in one evaluation.

Architecture of the drifting models (arXiv 2602.04770, appendix A; sizes of its Table 8). The condition is the sum of
a class, a style and a guidance embedding; it modulates every block (adaLN-zero, Peebles & Xie 2023) and is repeated
as context tokens in front of the image tokens. There is no time input.

Shape letters: B batch, N = (input_size / patch_size)^2 image tokens, T = context tokens + N, D = hidden_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drift_policy.errors import ConfigurationError, require
from image_gen.models.embeddings import GuidanceEmbedding, RMSNorm, apply_rotary, rotary_angles, sincos_positions
from image_gen.models.sizes import require_range

NORM_EPS = 1e-6
_EMBEDDING_STD = 0.02
_SWIGLU_MULTIPLE = 32
_MOST_NUMBERS = 2**28  # in the tokens of one image: a gigabyte in float32, a thousand times those of latent_L


@dataclass
class DiTConfig:
    """Settings of `DiT`, named as in the released metadata. The defaults are the paper's latent B/2."""

    input_size: int = 32  # height and width of an image or latent
    patch_size: int = 2  # height and width of a token
    in_channels: int = 4  # channels of the noise
    out_channels: int = 4  # channels of the generated image or latent
    hidden_size: int = 768  # width of a token
    cond_dim: int = 768  # width of the condition
    depth: int = 12  # number of blocks
    num_heads: int = 12  # attention heads
    mlp_ratio: float = 4.0  # width of the plain MLP over hidden_size; SwiGLU takes two thirds of it
    num_classes: int = 1000  # classes to choose from
    noise_classes: int = 64  # values of a style index; 0 switches style embeddings off
    noise_coords: int = 32  # style indices per image
    n_cls_tokens: int = 16  # context tokens in front of the image tokens
    use_qknorm: bool = True  # RMS normalisation of queries and keys
    use_swiglu: bool = True  # SwiGLU instead of a GELU MLP
    use_rope: bool = True  # rotary positions beside the learned ones
    use_rmsnorm: bool = True  # RMSNorm with weights instead of LayerNorm without

    def __post_init__(self) -> None:
        for name, least, most in (
            ("input_size", 1, 4096),
            ("patch_size", 1, 256),
            ("in_channels", 1, 4096),
            ("out_channels", 1, 4096),
            ("hidden_size", 4, 16384),
            ("cond_dim", 1, 16384),
            ("depth", 1, 256),
            ("num_heads", 1, 1024),
            ("num_classes", 1, 1_000_000),
            ("noise_classes", 0, 100_000),
            ("noise_coords", 1, 4096),
            ("n_cls_tokens", 0, 4096),
        ):
            require_range("generator", name, getattr(self, name), least, most)
        require(0 < self.mlp_ratio <= 64, f"generator: mlp_ratio must be in (0, 64], but is {self.mlp_ratio}.")
        require(
            self.input_size % self.patch_size == 0,
            f"generator: patch_size={self.patch_size} must divide input_size={self.input_size}, the side of images or "
            "latents: change dataset.image_size or model.patch_size.",
        )
        require(
            self.hidden_size % (4 * self.num_heads) == 0,
            f"generator: hidden_size={self.hidden_size} must be a multiple of 4 * num_heads={4 * self.num_heads}.",
        )
        tokens = (self.input_size // self.patch_size) ** 2
        require(
            tokens * self.hidden_size <= _MOST_NUMBERS,
            f"generator: input_size={self.input_size} and patch_size={self.patch_size} make {tokens:,} tokens of "
            f"hidden_size={self.hidden_size}, more than {_MOST_NUMBERS:,} numbers: raise patch_size, lower the others.",
        )


_DIGITS_TINY = DiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=1,
    out_channels=1,
    hidden_size=128,
    cond_dim=128,
    depth=4,
    num_heads=4,
    num_classes=10,
    noise_classes=16,
    noise_coords=8,
    n_cls_tokens=4,
)
# Table 8 of the paper; the ablation runs use latent_B. The tiny ones fit a CPU.
GENERATOR_SIZES: dict[str, DiTConfig] = {
    "latent_B": DiTConfig(),
    "latent_L": DiTConfig(hidden_size=1024, cond_dim=1024, depth=24, num_heads=16),
    "pixel_B": DiTConfig(input_size=256, patch_size=16, in_channels=3, out_channels=3),
    "pixel_L": DiTConfig(
        input_size=256,
        patch_size=16,
        in_channels=3,
        out_channels=3,
        hidden_size=1024,
        cond_dim=1024,
        depth=24,
        num_heads=16,
    ),
    "latent_tiny": DiTConfig(hidden_size=192, cond_dim=192, depth=6, num_heads=3, n_cls_tokens=4),
    "digits_tiny": _DIGITS_TINY,
    "fashion_tiny": replace(_DIGITS_TINY, input_size=28, patch_size=4),
}


def build_generator(size: str, **changes: Any) -> DiT:
    """Return a new generator of a size in `GENERATOR_SIZES`, with `changes` to its `DiTConfig`.

    Raises:
        ConfigurationError: an unknown size or setting, or settings that do not fit together.
    """
    if size not in GENERATOR_SIZES:
        raise ConfigurationError(f"Unknown generator size {size!r}; expected one of {', '.join(GENERATOR_SIZES)}.")
    try:
        return DiT(replace(GENERATOR_SIZES[size], **changes))
    except TypeError as error:
        raise ConfigurationError(f"A generator has no such setting: {error}.") from error


class DiT(nn.Module):
    """Class-conditional one-step generator.

    Args:
        config: settings.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.input_size // config.patch_size
        # Recompute the blocks' activations in the backward pass: less memory, one more forward pass.
        self.activation_checkpointing = False
        self.class_embed = nn.Embedding(config.num_classes, config.cond_dim)
        n_style = config.noise_coords if config.noise_classes else 0
        self.style_embeds = nn.ModuleList(nn.Embedding(config.noise_classes, config.cond_dim) for _ in range(n_style))
        self.guidance_embed = GuidanceEmbedding(config.cond_dim, eps=NORM_EPS)
        self.patch_embed = nn.Linear(config.patch_size**2 * config.in_channels, config.hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, grid * grid, config.hidden_size))
        self.context_proj: nn.Linear | None = None
        self.context_embed: nn.Parameter | None = None
        if config.n_cls_tokens:
            self.context_proj = nn.Linear(config.cond_dim, config.hidden_size)
            self.context_embed = nn.Parameter(torch.empty(1, config.n_cls_tokens, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = FinalLayer(config)
        self.reset_parameters()

    def forward(
        self,
        noise: Tensor,
        class_ids: Tensor,
        cfg_scale: Tensor | float,
        noise_labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Generate images or latents.

        Args:
            noise: standard normal numbers, [B, in_channels, input_size, input_size].
            class_ids: class of each image, integers [B].
            cfg_scale: guidance scale alpha that the network was trained for, [B] or one number.
            noise_labels: style indices, integers [B, noise_coords] below noise_classes; drawn if absent.
            generator: draws the style indices that are not given.

        Returns:
            [B, out_channels, input_size, input_size].

        Raises:
            ValueError: an argument of another shape or type than the network was built for.
        """
        config = self.config
        cfg_scale = torch.as_tensor(cfg_scale, dtype=torch.float32, device=noise.device)
        cfg_scale = cfg_scale.expand(len(noise)) if cfg_scale.ndim == 0 else cfg_scale
        if noise_labels is None:
            noise_labels = self.draw_noise_labels(len(noise), noise.device, generator)
        self._check(noise, class_ids, cfg_scale, noise_labels)

        condition = self.class_embed(class_ids) + self.guidance_embed(cfg_scale)  # [B, cond_dim]
        for coordinate, embed in enumerate(self.style_embeds):
            condition = condition + embed(noise_labels[:, coordinate])

        p = config.patch_size
        tokens = rearrange(noise, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        tokens = self.patch_embed(tokens) + self.pos_embed  # [B, N, D]
        if self.context_proj is not None and self.context_embed is not None:
            context = self.context_proj(condition).unsqueeze(1) + self.context_embed  # [B, context, D]
            tokens = torch.cat([context, tokens], dim=1)  # [B, T, D]

        angles = rotary_angles(tokens.shape[1], config.hidden_size // config.num_heads, tokens.device)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, angles, use_reentrant=False)
            else:
                tokens = block(tokens, condition, angles)

        patches = self.final(tokens[:, config.n_cls_tokens :], condition)  # [B, N, p * p * C]
        grid = config.input_size // p
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid, w=grid, p=p, q=p)

    def draw_noise_labels(
        self, batch: int, device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw style indices, integers [batch, noise_coords]; zeros if the network has no style embeddings."""
        shape = (batch, self.config.noise_coords)
        if not self.config.noise_classes:
            return torch.zeros(shape, dtype=torch.long, device=device)
        # Drawn on the generator's device, so that a seed gives the same styles on every machine.
        source = device if generator is None else generator.device
        return torch.randint(self.config.noise_classes, shape, generator=generator, device=source).to(device)

    def save_pretrained(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> Path:
        """Write config.json and model.safetensors to `folder`, for `image_gen.load_generator`."""
        from image_gen.artifacts.pretrained import save_model

        return save_model(self, folder, metadata)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the paper: sine-cosine positions, small embeddings, blocks and output at zero (adaLN-zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
        if not self.pos_embed.is_meta:  # the table is made on the CPU, and would be made for nothing
            grid = self.config.input_size // self.config.patch_size
            self.pos_embed.copy_(sincos_positions(grid, self.config.hidden_size).to(self.pos_embed.device))
        if self.context_embed is not None:
            nn.init.normal_(self.context_embed, std=_EMBEDDING_STD)
        zeroed = [self.final.linear, *(m.linear for m in self.modules() if isinstance(m, Modulation))]
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _check(self, noise: Tensor, class_ids: Tensor, cfg_scale: Tensor, noise_labels: Tensor) -> None:
        size, batch = self.config.input_size, len(noise)
        for name, value, expected in (
            ("noise", noise, [batch, self.config.in_channels, size, size]),
            ("class_ids", class_ids, [batch]),
            ("cfg_scale", cfg_scale, [batch]),
            ("noise_labels", noise_labels, [batch, self.config.noise_coords]),
        ):
            if list(value.shape) != expected:
                raise ValueError(f"{name} must have shape {expected}, but has {list(value.shape)}.")
        for name, labels, count in (
            ("class_ids", class_ids, self.config.num_classes),
            ("noise_labels", noise_labels, max(self.config.noise_classes, 1)),
        ):
            if labels.is_floating_point():
                raise ValueError(f"{name} must hold integers, but holds {labels.dtype}.")
            # Elsewhere the look-up itself fails an assertion on the device; asking here would stall training.
            if labels.is_cpu and not torch.compiler.is_compiling() and bool(((labels < 0) | (labels >= count)).any()):
                raise ValueError(f"{name} must be from 0 to {count - 1}, but are {labels.unique().tolist()}.")


class Modulation(nn.Module):
    """SiLU and a linear layer from the condition to `chunks` modulations."""

    def __init__(self, cond_dim: int, hidden_size: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(cond_dim, chunks * hidden_size)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return `chunks` tensors [B, 1, D] of a condition [B, cond_dim], without autocast as in the released code."""
        with torch.autocast(condition.device.type, enabled=False):
            condition = functional.silu(condition.to(self.linear.weight.dtype))
            return self.linear(condition).unsqueeze(1).chunk(self.chunks, dim=-1)


class Block(nn.Module):
    """Attention and MLP, each modulated by the condition and added through a gate that starts at zero."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.norm2 = _norm(config)
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.mlp = SwiGLU(config.hidden_size, hidden) if config.use_swiglu else Mlp(config.hidden_size, hidden)
        self.modulation = Modulation(config.cond_dim, config.hidden_size, chunks=6)

    def forward(self, tokens: Tensor, condition: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Transform [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        tokens = tokens + gate1 * self.attn(self.norm1(tokens) * (1 + scale1) + shift1, angles)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


class Attention(nn.Module):
    """Multi-head self-attention by PyTorch's fused kernel, with normalised queries and keys and rotary positions."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.use_rope = config.use_rope
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        head_dim = config.hidden_size // config.num_heads
        self.q_norm = RMSNorm(head_dim, eps=NORM_EPS) if config.use_qknorm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps=NORM_EPS) if config.use_qknorm else nn.Identity()

    def forward(self, tokens: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Transform [B, T, D]."""
        q, k, v = rearrange(self.qkv(tokens), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.use_rope:
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        # Normalisation and rotation return float32 under autocast; the fused kernel wants one type.
        attended = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)  # [B, heads, T, head_dim]
        return self.proj(rearrange(attended, "b h t d -> b t (h d)"))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer 2020), two thirds as wide as `hidden` to have the parameters of a plain one."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = math.ceil(int(2 / 3 * hidden) / _SWIGLU_MULTIPLE) * _SWIGLU_MULTIPLE
        self.gate = nn.Linear(width, inner)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform [B, T, D]."""
        return self.down(functional.silu(self.gate(tokens)) * self.up(tokens))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform [B, T, D]."""
        return self.down(functional.gelu(self.up(tokens), approximate="tanh"))


class FinalLayer(nn.Module):
    """Modulated normalisation and a linear layer."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.modulation = Modulation(config.cond_dim, config.hidden_size, chunks=2)
        self.linear = nn.Linear(config.hidden_size, config.patch_size**2 * config.out_channels)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Transform tokens [B, N, D] to patches [B, N, p * p * C]."""
        shift, scale = self.modulation(condition)
        return self.linear(self.norm(tokens) * (1 + scale) + shift)


def _norm(config: DiTConfig) -> nn.Module:
    if config.use_rmsnorm:
        return RMSNorm(config.hidden_size, eps=NORM_EPS)
    return nn.LayerNorm(config.hidden_size, eps=NORM_EPS, elementwise_affine=False)
