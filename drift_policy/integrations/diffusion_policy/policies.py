"""One-step policies for `_target_` in a Diffusion Policy checkout: the calls that its workspaces and runners make."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError, require
from drift_policy.integrations.diffusion_policy.linear_normalizer import from_linear_normalizer
from drift_policy.policy import build_policy
from drift_policy.policy_config import (
    ACTION,
    policy_config_from_mapping,
    require_constant_loss,
    usual_noise_scale,
)
from drift_policy.runtime.spec import executed_steps

_KINDS = {"low_dim": "state", "rgb": "image"}  # type in a shape_meta -> kind of an ObservationSpec


class _WorkspacePolicy(nn.Module):
    """Our policy behind the interface of Diffusion Policy's BaseLowdimPolicy and BaseImagePolicy.

    Args:
        settings: fields of `PolicyConfig`, as `policy_config_from_mapping` takes them; a noise_scale of None is what is
            usual for the head.

    Raises:
        ConfigurationError: a setting that is unknown or cannot work, also a loss that changes with the step.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        values = dict(settings)
        if values["noise_scale"] is None:
            values["noise_scale"] = usual_noise_scale(str(values["head"].get("name")))
        config = policy_config_from_mapping(values)
        require_constant_loss(config, "a Diffusion Policy workspace")
        self.policy = build_policy(config)
        self.horizon = self.policy.horizon
        self.n_obs_steps = self.policy.n_obs_steps
        self.n_action_steps = self.policy.n_action_steps
        self.action_dim = self.policy.action_dim

    @property
    def n_action_steps(self) -> int:
        """Ta: steps in the "action" of an answer; the checkout's `eval_real_robot.py` sets more than the configuration.

        Raises:
            ConfigurationError: it is set to more than a chunk has from the newest observation on, or to less than 1.
        """
        return self._n_action_steps

    @n_action_steps.setter
    def n_action_steps(self, steps: int) -> None:
        longest = self.horizon - self.n_obs_steps + 1
        require(1 <= steps <= longest, f"n_action_steps is {steps}; give 1 to horizon - n_obs_steps + 1 = {longest}.")
        self._n_action_steps = steps

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.policy.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.policy.dtype

    @property
    def obs_encoder(self) -> nn.Module:
        """The encoder of observations, which `training.freeze_encoder` of the image workspaces freezes."""
        return self.policy.encoder

    def set_normalizer(self, normalizer: Any) -> None:
        """Take over a `LinearNormalizer`, by its numbers; see `from_linear_normalizer` for what is refused."""
        images = [key for key, spec in self.policy.config.observations.items() if spec.kind == "image"]
        self.policy.set_normalizer(from_linear_normalizer(normalizer, self.policy.normalizer.sizes, images))

    def compute_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the training loss, a scalar.

        The drifting loss is nearly constant by construction: watch the workspace's `train_action_mse_error` and
        rollouts instead, and let checkpoints be chosen by those.

        Args:
            batch: {"obs": {key: [B, T, ...]} or [B, T, Do], "action": [B, Tp, Da]}; observations after the first To
                steps are not looked at.
        """
        loss, _ = self.policy.compute_loss(
            {"obs": self._first_steps(batch["obs"]), ACTION: self._to_policy(batch[ACTION])}
        )
        return loss

    def predict_action(self, obs_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw one action chunk an observation.

        Args:
            obs_dict: {key: [B, T, ...]} in the units of the demonstrations; the first To steps are used.

        Returns:
            {"action": [B, Ta, Da], "action_pred": [B, Tp, Da]}; "action" begins at the newest observation step
            (`oa_step_convention: True`).

        Raises:
            ValueError: `past_action` is given, or an observation does not fit.
        """
        if "past_action" in obs_dict:
            raise ValueError("The policy does not condition on past actions: set past_action: False in the env_runner.")
        predicted = self.policy.predict_action(self._first_steps(obs_dict))["action_pred"]
        return {"action": executed_steps(predicted, self.n_obs_steps, self.n_action_steps), "action_pred": predicted}

    def reset(self) -> None:
        """Begin a new episode."""
        self.policy.reset()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a checkpoint folder that `drift_policy.load_policy` reads outside of the checkout."""
        return self.policy.save_pretrained(folder)

    def _first_steps(self, obs: Any) -> dict[str, Tensor]:
        given = obs if isinstance(obs, Mapping) else dict.fromkeys(self.policy.config.observations, obs)
        missing = sorted(self.policy.config.observations.keys() - given.keys())
        if missing:
            raise ValueError(f"obs lacks the key {missing[0]!r}: it has {sorted(given)}.")
        return {
            key: self._to_policy(torch.as_tensor(given[key])[:, : self.n_obs_steps])
            for key in self.policy.config.observations
        }

    def _to_policy(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)


class DriftLowdimPolicy(_WorkspacePolicy):
    """Policy for state observations, for `TrainDiffusionUnetLowdimWorkspace` and its runners.

    Args:
        horizon: Tp, steps of a predicted chunk.
        obs_dim: Do, numbers of an observation (key "obs").
        action_dim: Da, numbers of an action.
        n_obs_steps: To, observations that a decision sees.
        n_action_steps: Ta, steps that are executed.
        network: {"name": ..., settings}, as in configs/policy/network; the residual MLP if absent.
        head: {"name": ..., settings}, as in configs/policy/head; the drift head if absent.
        noise_scale: factor on the noise at test time; 0.5 for the drift head and 1 for the others if absent.
        num_candidates: chunks drawn for a decision; the most typical one is executed.

    Raises:
        ConfigurationError: a setting that is unknown or cannot work.
    """

    def __init__(
        self,
        horizon: int,
        obs_dim: int,
        action_dim: int,
        n_obs_steps: int,
        n_action_steps: int,
        network: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        noise_scale: float | None = None,
        num_candidates: int = 1,
    ) -> None:
        super().__init__(
            {
                "observations": {"obs": {"shape": [obs_dim]}},
                "action_dim": action_dim,
                "horizon": horizon,
                "n_obs_steps": n_obs_steps,
                "n_action_steps": n_action_steps,
                "network": dict(network or {"name": "mlp"}),
                "head": dict(head or {"name": "drift"}),
                "noise_scale": noise_scale,
                "num_candidates": num_candidates,
            }
        )
        self.obs_dim = obs_dim


class DriftImagePolicy(_WorkspacePolicy):
    """Policy for cameras and numbers, for the image and hybrid U-Net workspaces and their runners.

    Args:
        shape_meta: {"obs": {key: {"shape": ..., "type": "rgb" or "low_dim"}}, "action": {"shape": [Da]}}, the task's;
            images are [channels, height, width], and a key without type is "low_dim".
        horizon: Tp, steps of a predicted chunk.
        n_obs_steps: To, observations that a decision sees.
        n_action_steps: Ta, steps that are executed.
        crop_shape: [height, width] of the crops, random in training and central otherwise; None crops nothing.
        resize_shape: [height, width] that images are scaled to before the crop; None keeps their size.
        image_backbone: {"name": ..., settings}, as in configs/policy/image_backbone; ResNet-18 if absent.
        share_image_backbone: one network for all cameras instead of one each.
        network: {"name": ..., settings}, as in configs/policy/network; the residual MLP if absent.
        head: {"name": ..., settings}, as in configs/policy/head; the drift head if absent.
        noise_scale: factor on the noise at test time; 0.5 for the drift head and 1 for the others if absent.
        num_candidates: chunks drawn for a decision; the most typical one is executed.

    Raises:
        ConfigurationError: a setting or a part of shape_meta that is unknown or cannot work.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        crop_shape: list[int] | None = None,
        resize_shape: list[int] | None = None,
        image_backbone: Mapping[str, Any] | None = None,
        share_image_backbone: bool = False,
        network: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        noise_scale: float | None = None,
        num_candidates: int = 1,
    ) -> None:
        observations, action_dim = observations_of(shape_meta, crop_shape, resize_shape)
        super().__init__(
            {
                "observations": observations,
                "action_dim": action_dim,
                "horizon": horizon,
                "n_obs_steps": n_obs_steps,
                "n_action_steps": n_action_steps,
                "image_backbone": dict(image_backbone or {"name": "resnet18"}),
                "share_image_backbone": share_image_backbone,
                "network": dict(network or {"name": "mlp"}),
                "head": dict(head or {"name": "drift"}),
                "noise_scale": noise_scale,
                "num_candidates": num_candidates,
            }
        )


def observations_of(
    shape_meta: Mapping[str, Any], crop_shape: list[int] | None, resize_shape: list[int] | None = None
) -> tuple[dict[str, dict[str, Any]], int]:
    """Translate a shape_meta to the observations of a policy configuration and the action size Da.

    Raises:
        ConfigurationError: it is incomplete, or has an observation that is neither "rgb" nor "low_dim".
    """
    try:
        action_shape = list(shape_meta["action"]["shape"])
        shapes = {
            str(key): (list(attr["shape"]), attr.get("type", "low_dim")) for key, attr in shape_meta["obs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            'shape_meta must be {"obs": {key: {"shape": [...], "type": ...}}, "action": {"shape": [Da]}}, '
            f"but {error} does not fit."
        ) from error
    if len(action_shape) != 1:
        raise ConfigurationError(f"shape_meta.action.shape must be [Da], but is {action_shape}.")
    observations: dict[str, dict[str, Any]] = {}
    for key, (shape, kind) in shapes.items():
        if kind not in _KINDS:
            raise ConfigurationError(f"shape_meta.obs.{key} has the type {kind!r}; expected one of {list(_KINDS)}.")
        observations[key] = {"kind": _KINDS[kind], "shape": shape}
        if _KINDS[kind] == "image":
            crop, resize = (None if size is None else list(size) for size in (crop_shape, resize_shape))
            observations[key] |= {"crop": crop, "resize": resize}
    return observations, int(action_shape[0])
