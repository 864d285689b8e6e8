"""A `Policy` with the diffusion head and the weights of a Diffusion Policy checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drift_policy.data.normalizer import Normalizer
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.integrations.diffusion_policy.legacy_checkpoint import LegacyCheckpoint, read_legacy_checkpoint
from drift_policy.integrations.diffusion_policy.legacy_names import part_of, rename_cameras, rename_network
from drift_policy.integrations.diffusion_policy.linear_normalizer import from_linear_normalizer
from drift_policy.integrations.diffusion_policy.policies import observations_of
from drift_policy.policy import Policy, build_policy
from drift_policy.policy_config import ACTION, policy_config_from_mapping

# What the released configurations say, and the one value that can be read; others would compute something else.
_ONLY: dict[str, Any] = {
    "obs_as_global_cond": True,
    "obs_as_cond": True,
    "obs_as_local_cond": False,
    "pred_action_steps_only": False,
    "oa_step_convention": True,
}
_ONLY_SCHEDULER: dict[str, Any] = {
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
_SPECIAL_GROUPS = 8  # the U-Net's last block has this many, whatever n_groups says


class _Params(NamedTuple):
    """The part of a `LinearNormalizer` that is read."""

    params_dict: dict[str, dict[str, Tensor]]


def load_legacy_policy(
    path: str | Path,
    *,
    weights: str = "ema_model",
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> Policy:
    """Return the policy of a Diffusion Policy checkpoint, in evaluation mode; nothing in the file is executed.

    Read are the policies of the low-dimensional U-Net and transformer workspaces and of the hybrid U-Net image
    workspace, with observations as condition. Save the result with `save_pretrained` to have it as safetensors.

    Args:
        path: the `.ckpt` file.
        weights: "ema_model", the averaged ones, or "model".
        config: entries of the workspace's `policy` configuration, laid over those in the checkpoint: needed where that
            has an expression in place of a number, for example {"n_action_steps": 8}.
        device: where to put it.

    Raises:
        CheckpointError: the file cannot be read, is of another kind of policy, or lacks a setting; the message says
            which.
    """
    checkpoint = read_legacy_checkpoint(path)
    if weights not in checkpoint.state_dicts:
        raise CheckpointError(f"{path} has no weights {weights!r}, but {sorted(checkpoint.state_dicts)}.")
    return policy_from_legacy(checkpoint, weights, config, str(path)).to(device).eval()


def policy_from_legacy(
    checkpoint: LegacyCheckpoint, weights: str, config: Mapping[str, Any] | None, where: str
) -> Policy:
    """Build the policy of what was read; see `load_legacy_policy`.

    Raises:
        CheckpointError: it cannot be expressed.
    """
    settings = _Settings(checkpoint.config, config or {}, where)
    state = checkpoint.state_dicts[weights]
    network = part_of(state, "model.")
    cameras = rename_cameras(part_of(state, "obs_encoder."))
    params: dict[str, dict[str, Tensor]] = {}
    for name, tensor in part_of(state, "normalizer.params_dict.").items():
        key, _, rest = name.partition(".")
        params.setdefault(key, {})[rest] = tensor
    try:
        policy = build_policy(
            policy_config_from_mapping(_describe(settings, network, params, cameras)),
            {"origin": "Diffusion Policy checkpoint"},
        )
        normalizer = from_linear_normalizer(_Params(params), policy.normalizer.sizes, cameras)
    except ConfigurationError as error:
        raise CheckpointError(f"{where} cannot be expressed as a policy: {error}") from error
    _load(policy, rename_network(network), cameras, normalizer, where)
    return policy


class _Settings:
    """The `policy` section of the checkpoint, with what the user laid over it."""

    def __init__(self, stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
        section = stored.get("policy")
        self._values = {**(section if isinstance(section, dict) else {}), **given}
        self._where = where
        self.check(self._values, _ONLY, "policy")
        self.scheduler = self._section("noise_scheduler")
        self.check(self.scheduler, _ONLY_SCHEDULER, "policy.noise_scheduler")
        self.model = self._section("model")

    def _section(self, name: str) -> dict[str, Any]:
        value = self._values.get(name)
        return dict(value) if isinstance(value, Mapping) else {}

    def check(self, values: Mapping[str, Any], only: Mapping[str, Any], name: str) -> None:
        """Refuse settings under which the network would mean something else."""
        for key, expected in only.items():
            if key in values and values[key] != expected:
                raise CheckpointError(
                    f"{self._where} was trained with {name}.{key}={values[key]!r}; only {expected!r} can be read."
                )

    def number(self, name: str, default: int | None = None) -> int:
        """Return a whole number of the section."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(
                f"{self._where} does not say the policy's {name} as a number (but {value!r}): give it, for example "
                f'config={{"{name}": ...}}; it is in the .hydra/config.yaml of the run.'
            )
        return value

    def get(self, name: str) -> Any:
        """Return any value of the section, or None."""
        return self._values.get(name)


def _describe(
    settings: _Settings,
    network: Mapping[str, Tensor],
    params: Mapping[str, Mapping[str, Tensor]],
    cameras: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Return the configuration of the policy: sizes from the tensors, the rest from the settings."""
    is_transformer = "pos_emb" in network
    part = _transformer(settings, network) if is_transformer else _unet(settings, network)
    values: dict[str, Any] = {
        "n_action_steps": settings.number("n_action_steps"),
        "n_obs_steps": settings.number("n_obs_steps"),
        "horizon": network["pos_emb"].shape[1] if is_transformer else settings.number("horizon"),
        "head": _head(settings),
        "network": part,
    }
    if cameras:
        shape_meta = settings.get("shape_meta")
        if not isinstance(shape_meta, Mapping):
            raise CheckpointError('The checkpoint does not say its shape_meta: give it, config={"shape_meta": {...}}.')
        observations, action_dim = observations_of(shape_meta, settings.get("crop_shape"))
        first = next(iter(cameras.values()))
        backbone = {"num_keypoints": len(first["12.maps.weight"]), "feature_size": len(first["13.weight"])}
        return values | {
            "observations": observations,
            "action_dim": action_dim,
            "image_backbone": {"name": "resnet18", **backbone},
        }
    missing = [key for key in ("obs", ACTION) if "scale" not in params.get(key, {})]
    if missing:
        raise CheckpointError(f"The checkpoint's normaliser lacks {missing[0]!r}: it has {sorted(params)}.")
    obs_dim, action_dim = (len(params[key]["scale"]) for key in ("obs", ACTION))
    return values | {"observations": {"obs": {"shape": [obs_dim]}}, "action_dim": action_dim}


def _head(settings: _Settings) -> dict[str, Any]:
    scheduler = settings.scheduler
    target = str(scheduler.get("_target_", "DDPMScheduler")).rpartition(".")[2]
    if target not in ("DDPMScheduler", "DDIMScheduler"):
        raise CheckpointError(f"The checkpoint's noise scheduler is {target}; DDPM and DDIM can be read.")
    steps = scheduler.get("num_train_timesteps", 100)
    inference = settings.get("num_inference_steps")
    return {
        "name": "diffusion",
        "sampler": "ddim" if target == "DDIMScheduler" else "ddpm",
        "num_train_steps": steps,
        "num_inference_steps": steps if inference is None else inference,
        "beta_schedule": scheduler.get("beta_schedule", "squaredcos_cap_v2"),
        "clip_sample": scheduler.get("clip_sample", True),
    }


def _unet(settings: _Settings, network: Mapping[str, Tensor]) -> dict[str, Any]:
    needed = ("down_modules.0.0.blocks.0.block.0.weight", "diffusion_step_encoder.1.weight")
    if any(name not in network for name in needed) or any(name.startswith("local_cond") for name in network):
        raise CheckpointError("The checkpoint's network is neither a U-Net with global condition nor a transformer.")
    n_groups = settings.model.get("n_groups", settings.get("n_groups") or _SPECIAL_GROUPS)
    if n_groups != _SPECIAL_GROUPS:
        raise CheckpointError(f"The checkpoint's U-Net has n_groups={n_groups}; only {_SPECIAL_GROUPS} can be read.")
    dims: list[int] = []
    while (name := f"down_modules.{len(dims)}.0.blocks.0.block.0.weight") in network:
        dims.append(network[name].shape[0])
    film = network.get("down_modules.0.0.cond_encoder.1.weight")
    return {
        "name": "conditional_unet1d",
        "down_dims": dims,
        "kernel_size": network[needed[0]].shape[2],
        "n_groups": n_groups,
        "diffusion_step_embed_dim": network[needed[1]].shape[1],
        "cond_predict_scale": film is not None and film.shape[0] == 2 * dims[0],
    }


def _transformer(settings: _Settings, network: Mapping[str, Tensor]) -> dict[str, Any]:
    if "cond_obs_emb.weight" not in network or "encoder.0.weight" not in network:
        raise CheckpointError(
            "The checkpoint's transformer is not the one with observations as condition, time as condition and "
            "n_cond_layers: 0, which alone can be read."
        )
    n_head, causal = settings.model.get("n_head"), settings.model.get("causal_attn")
    if not isinstance(n_head, int) or not isinstance(causal, bool):
        raise CheckpointError(
            "The checkpoint does not say its transformer's n_head and causal_attn: give them, for example "
            'config={"model": {"n_head": 4, "causal_attn": True}}.'
        )
    layers = {name.split(".")[2] for name in network if name.startswith("decoder.layers.")}
    return {
        "name": "transformer",
        "n_layer": len(layers),
        "n_head": n_head,
        "n_emb": network["pos_emb"].shape[2],
        "causal_attn": causal,
        "condition_tokens": network["cond_pos_emb"].shape[1] - 1,
    }


def _load(
    policy: Policy,
    network: Mapping[str, Tensor],
    cameras: Mapping[str, Mapping[str, Tensor]],
    normalizer: Normalizer,
    where: str,
) -> None:
    """Put the tensors into the policy; every one must be there and fit."""
    state = {f"normalizer.{name}": tensor for name, tensor in normalizer.state_dict().items()}
    state |= {f"head.network.{name}": tensor for name, tensor in network.items()}
    for camera, tensors in cameras.items():
        state |= {f"encoder.backbones.{camera}.{name}": tensor for name, tensor in tensors.items()}
    try:
        policy.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{where} does not hold the policy that its settings describe: {error}") from error
