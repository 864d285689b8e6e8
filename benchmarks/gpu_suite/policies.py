"""The policies and optimiser settings of the suite, without the packages that read configuration files.

The numbers are those of `configs/`; a test holds both against each other.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu_suite.prepared import Prepared
from benchmarks.gpu_suite.schedulers import tabulated_diffusion
from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.backbones.resnet18 import Resnet18Config
from drift_policy.encoders.backbones.small_cnn import SmallCnnConfig
from drift_policy.heads.diffusion import DiffusionHeadConfig
from drift_policy.heads.drift import DriftHeadConfig
from drift_policy.networks import ConditionalUnet1dConfig, TransformerConfig
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import PolicyConfig
from drift_policy.training.trainer_config import TrainerConfig

HEADS: dict[str, Any] = {
    "drift": DriftHeadConfig(),
    "ddpm_100": DiffusionHeadConfig(sampler="ddpm", num_inference_steps=100),
    "ddim_16": DiffusionHeadConfig(sampler="ddim", num_inference_steps=16),
}
TRAINED_HEADS = {"drift": "drift", "diffusion": "ddpm_100"}  # `policy` of train_policy.py -> key of HEADS
NETWORKS = ("unet", "transformer")
BACKBONES: dict[str, Any] = {
    "resnet18": Resnet18Config(),
    "small_cnn": SmallCnnConfig(channels=[16, 32, 64], kernel_sizes=[5, 3, 3], strides=[2, 2, 1], num_keypoints=64),
}
_DRIFT_NOISE_SCALE = 0.5  # test time; what configs/policy/base_drift.yaml uses


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network."""

    network: str = "unet"  # one of NETWORKS
    down_dims: list[int] = field(default_factory=lambda: [256, 512, 1024])  # of the U-Net
    step_embedding: int = 256  # of the U-Net, iterative heads only
    layers: int = 8  # of the transformer
    width: int = 256  # of the transformer
    backbone: str = "resnet18"  # of images, a key of BACKBONES


STATE_UNET = Sizes()
IMAGE_UNET = Sizes(down_dims=[512, 1024, 2048], step_embedding=128)
STATE_TRANSFORMER = Sizes(network="transformer")


def policy_config(
    prepared: Prepared, head: str, sizes: Sizes, specs: dict[str, ObservationSpec] | None = None
) -> PolicyConfig:
    """Return the configuration of a policy for prepared demonstrations.

    Args:
        prepared: the demonstrations.
        head: a key of HEADS.
        sizes: of its networks.
        specs: observations in place of those of the demonstrations.
    """
    network: Any = (
        ConditionalUnet1dConfig(down_dims=sizes.down_dims, diffusion_step_embed_dim=sizes.step_embedding)
        if sizes.network == "unet"
        else TransformerConfig(n_layer=sizes.layers, n_emb=sizes.width, condition_tokens=prepared.n_obs_steps)
    )
    return PolicyConfig(
        action_dim=prepared.action.shape[1],
        observations=specs or prepared.specs,
        horizon=prepared.horizon,
        n_obs_steps=prepared.n_obs_steps,
        n_action_steps=prepared.n_action_steps,
        noise_scale=_DRIFT_NOISE_SCALE if head == "drift" else 1.0,
        head_name="drift" if head == "drift" else "diffusion",
        head=HEADS[head],
        network_name="conditional_unet1d" if sizes.network == "unet" else "transformer",
        network=network,
        image_backbone_name=sizes.backbone,
        image_backbone=BACKBONES[sizes.backbone],
    )


def make_policy(prepared: Prepared, config: PolicyConfig, seed: int, device: torch.device) -> Policy:
    """Return a policy with its normaliser set and its weights drawn from the seed."""
    torch.manual_seed(seed)
    with tabulated_diffusion(prepared.tables):
        policy = build_policy(config, prepared.metadata)
    policy.set_normalizer(prepared.normalizer())
    return policy.to(device)


def num_parameters(policy: Policy) -> int:
    """Return how many numbers are trained."""
    return sum(parameter.numel() for parameter in policy.parameters())


def trainer_config(network: str, has_images: bool, **changes: Any) -> TrainerConfig:
    """Return Diffusion Policy's optimiser settings for a network of NETWORKS, with `changes`."""
    settings: dict[str, Any] = {
        "batch_size": 64 if has_images else 256,
        "learning_rate": 1e-4,
        "gradient_clip": None,
        "ema_decay": 0.9999,
    }
    if network == "transformer":
        settings |= {"betas": [0.9, 0.95], "weight_decay": 1e-3, "warmup_steps": 1000}
    else:
        settings |= {"betas": [0.95, 0.999], "weight_decay": 1e-6, "warmup_steps": 500}
    return TrainerConfig(**settings | changes)
