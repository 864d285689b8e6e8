"""Diffusion Policy's transformer decoder over the steps of the action chunk (Chi et al. 2023, arXiv:2303.04137).

With `time_conditioned=True` the parameters have the shapes, the count and the state-dict order of Diffusion Policy's
`TransformerForDiffusion` (conditioned on time and observation, `n_cond_layers=0`, `n_obs_steps=condition_tokens`), less
its masks and dummy entry, so that its weights map one to one by position:

| here                                        | Diffusion Policy                          |
| ------------------------------------------- | ----------------------------------------- |
| action_position, memory_position            | pos_emb, cond_pos_emb                     |
| action_projection, condition_projection     | input_emb, cond_obs_emb                   |
| memory_encoder                              | encoder                                   |
| layers.{i} (parameter names as in torch)    | decoder.layers.{i}                        |
| output_norm, output                         | ln_f, head                                |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drift_policy.errors import require
from drift_policy.networks.base import ActionNetwork
from drift_policy.networks.embeddings import SinusoidalEmbedding

INIT_STD = 0.02
NOISE_INIT_STD = 0.1  # of the projection of a one-step network's noise
FIRST_SPREAD = 0.15  # of the chunks of an untrained one-step network, in normalised actions


@dataclass
class TransformerConfig:
    """Settings of `Transformer`; the default sizes are Diffusion Policy's.

    Raises:
        ConfigurationError: a value is out of range.
    """

    n_layer: int = 8  # decoder layers
    n_head: int = 4  # attention heads; divides n_emb
    n_emb: int = 256  # features of a token; even
    p_drop_emb: float = 0.0  # dropout of the embedded tokens while training
    p_drop_attn: float = 0.3  # dropout of attention weights, feed-forward and residual branches while training
    causal_attn: bool = True  # a step attends to steps and condition tokens up to its own index only
    condition_tokens: int = 1  # equal parts the condition is split into, usually n_obs_steps; divides its length

    def __post_init__(self) -> None:
        require(self.n_layer >= 1, f"transformer: n_layer is {self.n_layer}; give at least 1.")
        require(
            self.n_head >= 1 and self.n_emb >= 4 and self.n_emb % 2 == 0 and self.n_emb % self.n_head == 0,
            f"transformer: n_emb is {self.n_emb} with n_head={self.n_head}; n_emb must be even, at least 4 and "
            "divisible by n_head.",
        )
        for name in ("p_drop_emb", "p_drop_attn"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"transformer: {name} is {value}; give a probability in [0, 1).")
        require(
            self.condition_tokens >= 1, f"transformer: condition_tokens is {self.condition_tokens}; give at least 1."
        )


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer whose cross-attention serves all samples of an observation from one memory.

    Parameters and result are those of torch.nn.TransformerDecoderLayer(norm_first=True, activation="gelu"). That layer
    would need the memory, and so its keys and values, repeated for each of the G samples; here the G*Tp steps of an
    observation's samples are one query sequence.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        n_emb, dropout = config.n_emb, config.p_drop_attn
        self.self_attn = nn.MultiheadAttention(n_emb, config.n_head, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(n_emb, config.n_head, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(n_emb, 4 * n_emb)
        self.linear2 = nn.Linear(4 * n_emb, n_emb)
        self.norm1 = nn.LayerNorm(n_emb)
        self.norm2 = nn.LayerNorm(n_emb)
        self.norm3 = nn.LayerNorm(n_emb)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, step_mask: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        """Transform x [B*G, Tp, n_emb] given memory [B, M, n_emb].

        step_mask [Tp, Tp] and memory_mask [G*Tp, M] are true where attention is forbidden.
        """
        normed = self.norm1(x)
        attended, _ = self.self_attn(normed, normed, normed, attn_mask=step_mask, need_weights=False)
        x = x + self.dropout(attended)
        queries = self.norm2(x).view(memory.shape[0], -1, x.shape[-1])
        attended, _ = self.multihead_attn(queries, memory, memory, attn_mask=memory_mask, need_weights=False)
        x = x + self.dropout(attended).reshape(x.shape)
        hidden = self.dropout(functional.gelu(self.linear1(self.norm3(x))))
        residual: Tensor = self.dropout(self.linear2(hidden))
        return x + residual


class Transformer(ActionNetwork):
    """Decoder with one token per action step and cross-attention to condition (and time) tokens.

    Raises:
        ConfigurationError: condition_dim is not divisible by config.condition_tokens.
    """

    step_mask: Tensor | None

    def __init__(
        self,
        config: TransformerConfig,
        *,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        time_conditioned: bool,
    ) -> None:
        super().__init__(
            horizon=horizon, action_dim=action_dim, condition_dim=condition_dim, time_conditioned=time_conditioned
        )
        require(
            condition_dim % config.condition_tokens == 0,
            f"transformer: condition_tokens is {config.condition_tokens}, which does not divide the encoded "
            f"observation's {condition_dim} numbers; give a divisor, usually n_obs_steps.",
        )
        n_emb = config.n_emb
        self.n_condition_tokens = config.condition_tokens
        self.causal = config.causal_attn
        self.action_position = nn.Parameter(torch.empty(1, horizon, n_emb))
        self.memory_position = nn.Parameter(torch.empty(1, int(time_conditioned) + config.condition_tokens, n_emb))
        self.action_projection = nn.Linear(action_dim, n_emb)
        self.embedding_dropout = nn.Dropout(config.p_drop_emb)
        self.time_embedding = SinusoidalEmbedding(n_emb) if time_conditioned else None
        self.condition_projection = nn.Linear(condition_dim // config.condition_tokens, n_emb)
        self.memory_encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer))
        self.output_norm = nn.LayerNorm(n_emb)
        self.output = nn.Linear(n_emb, action_dim)
        step_mask = torch.ones(horizon, horizon, dtype=torch.bool).triu(1) if self.causal else None
        self.register_buffer("step_mask", step_mask, persistent=False)
        self._initialise()

    def generate(self, sample: Tensor, condition: Tensor, time: Tensor | None) -> Tensor:
        """Compute forward's result from checked inputs."""
        memory = self._memory(condition, time)
        memory_mask = self._memory_mask(sample.shape[1], sample.device)
        x = self.action_projection(sample.flatten(0, 1))
        x = self.embedding_dropout(x + self.action_position)
        for layer in self.layers:
            x = layer(x, memory, self.step_mask, memory_mask)
        chunks: Tensor = self.output(self.output_norm(x))
        return chunks.view_as(sample)

    def _memory(self, condition: Tensor, time: Tensor | None) -> Tensor:
        """Encode the tokens to attend to, [B, M, n_emb]: the G samples' time tokens, if any, then the condition's."""
        parts = condition.reshape(condition.shape[0], self.n_condition_tokens, -1)
        tokens = self.condition_projection(parts) + self.memory_position[:, -self.n_condition_tokens :]
        if self.time_embedding is not None:
            time_tokens = self.time_embedding(time) + self.memory_position[:, :1]
            tokens = torch.cat((time_tokens, tokens), dim=1)
        memory: Tensor = self.memory_encoder(self.embedding_dropout(tokens))
        return memory

    def _memory_mask(self, n_samples: int, device: torch.device) -> Tensor | None:
        """Mark the forbidden pairs [G*Tp, M]: later condition tokens for a causal step, another sample's time token."""
        if not self.causal and self.time_embedding is None:
            return None
        step = torch.arange(self.horizon, device=device).repeat(n_samples).unsqueeze(1)
        visible_until = step if self.causal else step.new_tensor(self.n_condition_tokens)
        forbidden = torch.arange(self.n_condition_tokens, device=device) > visible_until
        if self.time_embedding is not None:
            sample = torch.arange(n_samples, device=device)
            other_sample = sample.repeat_interleave(self.horizon).unsqueeze(1) != sample
            forbidden = torch.cat((other_sample, forbidden.expand(len(step), -1)), dim=1)
        return forbidden

    def _initialise(self) -> None:
        """Zero the biases and draw positions from N(0, 0.02^2), weights like Diffusion Policy if the network denoises.

        Under its N(0, 0.02^2) an observation moves the chunks of an untrained network tens of times less than the noise
        does (8 layers of 256; hundreds of times with 2 of 64). A denoiser learns in spite of that, as the steps that it
        is given are the demonstration in part. For one evaluation they are noise alone, and the network was slow to see
        what to condition on: weights from N(0, 1 / inputs), less for the noise, let the observation through. The last
        layer is small, so that the first samples lie close together.
        """
        nn.init.normal_(self.action_position, std=INIT_STD)
        nn.init.normal_(self.memory_position, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self._init_std(module.in_features))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=self._init_std(module.embed_dim))
                nn.init.zeros_(module.in_proj_bias)
        if self.time_embedding is None:
            nn.init.normal_(self.action_projection.weight, std=NOISE_INIT_STD)
            nn.init.normal_(self.output.weight, std=FIRST_SPREAD / self.output.in_features**0.5)

    def _init_std(self, n_inputs: int) -> float:
        """Return the standard deviation that weights of so many inputs start with."""
        return INIT_STD if self.time_embedding is not None else n_inputs**-0.5
