"""The configuration of a drift policy as LeRobot registers, parses and stores it."""

from dataclasses import dataclass, field
from typing import Any

from drift_policy.integrations.lerobot.inner_policy import policy_config_of
from drift_policy.policy_config import PolicyConfig, require_constant_loss
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig


@PreTrainedConfig.register_subclass("drift")
@dataclass
class DriftConfig(PreTrainedConfig):
    """Settings of `DriftPolicy`.

    Observed are all numbers of the data set ("observation.state", "observation.environment_state" and others) and all
    its cameras. The parts of the policy are chosen by name, with settings as in drift-policy's configs/policy.

    Raises:
        drift_policy.errors.ConfigurationError: a setting that is unknown or cannot work, once the features are known.
    """

    n_obs_steps: int = 2  # To: observations that a decision sees
    horizon: int = 16  # Tp: steps of a predicted chunk, the first observation step included
    n_action_steps: int = 8  # Ta: steps of a chunk that are executed before the next decision

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,  # the encoder brings images from 0..1 to [-1, 1] itself
            "STATE": NormalizationMode.MIN_MAX,
            "ENV": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    drop_n_last_frames: int = 7  # windows that would begin in the last frames of an episode: mostly repeated actions

    network: str = "mlp"  # "mlp", "conditional_unet1d" or "transformer"
    network_settings: dict[str, Any] = field(default_factory=dict)  # for example {width: 512}
    head: str = "drift"  # "drift", "diffusion", "flow", "mip" or "regression"
    head_settings: dict[str, Any] = field(default_factory=dict)  # for example {samples_per_observation: 8}
    image_backbone: str = "resnet18"  # "resnet18" or "small_cnn"
    image_backbone_settings: dict[str, Any] = field(default_factory=dict)
    share_image_backbone: bool = False  # one network for all cameras instead of one each
    resize_shape: tuple[int, int] | None = None  # (height, width) that images are scaled to before the crop
    crop_shape: tuple[int, int] | None = None  # (height, width), random in training, central otherwise
    noise_scale: float | None = None  # factor on the noise at test time; null is 0.5 for drift and 1 for other heads
    num_candidates: int = 1  # chunks drawn for a decision in one batched evaluation; the most typical one is executed

    ema_decay: float = 0.999  # decay of the averaged weights that decide; 0 decides with the trained ones
    optimizer_lr: float = 1e-3
    optimizer_betas: tuple[float, float] = (0.9, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-6
    optimizer_grad_clip_norm: float = 2.0
    scheduler_name: str = "cosine"
    scheduler_warmup_steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), but is {self.ema_decay}.")
        last = self.n_obs_steps - 1 + self.n_action_steps
        if last > self.horizon:
            raise ValueError(f"horizon must be at least n_obs_steps - 1 + n_action_steps = {last}, not {self.horizon}.")

    @property
    def observation_delta_indices(self) -> list[int]:
        """Frames of an observation, relative to the newest one."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """Frames of the demonstrated chunk, which begins with the oldest observation."""
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are needed."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimiser that `lerobot-train` uses unless told otherwise."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """Return the learning rate schedule that `lerobot-train` uses unless told otherwise."""
        return DiffuserSchedulerConfig(name=self.scheduler_name, num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Raise an error if there is no action, nothing to observe, or a feature of a shape that cannot be used."""
        self.policy_config()

    def policy_config(self) -> PolicyConfig:
        """Return the configuration of the policy inside.

        Raises:
            ValueError: there is no action, nothing to observe, or a feature that cannot be used.
            drift_policy.errors.ConfigurationError: a setting that is unknown or cannot work.
        """
        if self.action_feature is None:
            raise ValueError(f"drift needs the output feature 'action', but has {sorted(self.output_features or {})}.")
        shapes = {feature: description.shape for feature, description in (self.input_features or {}).items()}
        config = policy_config_of(vars(self), shapes, self.image_features, self.action_feature.shape)
        require_constant_loss(config, "lerobot-train")
        return config
