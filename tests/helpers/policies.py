"""Tiny policies, normalisers and batches for tests."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drift_policy import Policy, PolicyConfig, build_policy
from drift_policy.data.normalizer import Normalizer
from drift_policy.encoders import ObservationSpec
from drift_policy.heads import HEADS
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.heads.flow import FlowHeadConfig
from drift_policy.heads.mip import MipHeadConfig
from drift_policy.heads.regression import RegressionHeadConfig
from drift_policy.networks import ConditionalUnet1dConfig, MlpConfig, TransformerConfig

HEAD_NAMES = tuple(HEADS)
NETWORKS: dict[str, Any] = {
    "mlp": MlpConfig(width=16, depth=1, diffusion_step_embed_dim=8),
    "conditional_unet1d": ConditionalUnet1dConfig(
        down_dims=[8, 16], kernel_size=3, n_groups=4, diffusion_step_embed_dim=8
    ),
    "transformer": TransformerConfig(n_layer=1, n_head=1, n_emb=8, p_drop_attn=0.0),
}
HEAD_CONFIGS: dict[str, Any] = {
    "drift": DriftHeadConfig(samples_per_observation=3),
    "diffusion": DiffusionHeadConfig(num_train_steps=6, num_inference_steps=6),
    "flow": FlowHeadConfig(num_inference_steps=3),
    "mip": MipHeadConfig(),
    "regression": RegressionHeadConfig(),
}
# The demonstrations: far from [-1, 1], so that a missing or doubled normalisation shows.
ACTION_LOW, ACTION_HIGH = 100.0, 500.0
OBS_LOW, OBS_HIGH = -3.0, 9.0


def tiny_config(
    head: str = "drift",
    network: str = "mlp",
    *,
    head_config: Any = None,
    network_config: Any = None,
    observations: Mapping[str, int | ObservationSpec] | None = None,
    **settings: Any,
) -> PolicyConfig:
    """Return a policy configuration with small parts.

    Args:
        head: a name of HEAD_CONFIGS.
        network: a name of NETWORKS.
        head_config: settings of the head in place of those of HEAD_CONFIGS.
        network_config: settings of the network in place of those of NETWORKS.
        observations: key -> its number of dimensions, or all that there is to say of it.
        settings: further fields of `PolicyConfig`.
    """
    values: dict[str, Any] = {"horizon": 6, "n_obs_steps": 2, "n_action_steps": 3, "action_dim": 2}
    specs = {
        key: spec if isinstance(spec, ObservationSpec) else ObservationSpec(shape=[spec])
        for key, spec in (observations or {"obs": 5}).items()
    }
    return PolicyConfig(
        observations=specs,
        head_name=head,
        head=HEAD_CONFIGS[head] if head_config is None else head_config,
        network_name=network,
        network=NETWORKS[network] if network_config is None else network_config,
        **(values | settings),
    )


def tiny_normalizer(config: PolicyConfig) -> Normalizer:
    """Return the normaliser of demonstrations that fill the ranges above, in every dimension; images have none."""
    arrays = {
        key: torch.tensor([[OBS_LOW], [OBS_HIGH]]).expand(2, spec.shape[0])
        for key, spec in config.observations.items()
        if spec.kind == "state"
    }
    return Normalizer.fit(arrays | {"action": torch.tensor([[ACTION_LOW], [ACTION_HIGH]]).expand(2, config.action_dim)})


def tiny_policy(head: str = "drift", network: str = "mlp", *, seed: int = 0, **settings: Any) -> Policy:
    """Return a fitted policy in evaluation mode whose output depends on noise and observation.

    Args:
        head: a name of HEAD_CONFIGS.
        network: a name of NETWORKS.
        seed: seed of the weights.
        settings: arguments of `tiny_config`.
    """
    config = tiny_config(head, network, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = build_policy(config, metadata={"task": "tiny"})
        with torch.no_grad():  # layers that start at or near zero would hide an influence
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    policy.set_normalizer(tiny_normalizer(config))
    return policy.eval()


def tiny_obs(policy: Policy, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Return observations in the units of the demonstrations: {key: [batch, To, Do], or uint8 [batch, To, C, H, W]}."""
    generator = torch.Generator().manual_seed(seed)

    def draw(spec: ObservationSpec) -> Tensor:
        shape = (batch, policy.n_obs_steps, *spec.shape)
        if spec.kind == "image":
            return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return OBS_LOW + (OBS_HIGH - OBS_LOW) * torch.rand(shape, generator=generator)

    return {key: draw(spec) for key, spec in policy.config.observations.items()}


def tiny_batch(policy: Policy, batch: int = 3, seed: int = 0) -> dict[str, Any]:
    """Return a training batch: `tiny_obs` and actions [batch, Tp, Da] in the units of the demonstrations."""
    generator = torch.Generator().manual_seed(seed + 1)
    unit = torch.rand(batch, policy.horizon, policy.action_dim, generator=generator)
    return {"obs": tiny_obs(policy, batch, seed), "action": ACTION_LOW + (ACTION_HIGH - ACTION_LOW) * unit}


class CallCounter:
    """Counts the forward calls of a module, and keeps how many rows each returned."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_hook(self._count)

    @property
    def calls(self) -> int:
        return len(self.rows)

    def _count(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.rows.append(len(output))
