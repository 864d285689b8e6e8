"""What settings and features of LeRobot's policy type "drift" say about the policy inside.

The plug-in makes its policy with it, and the conversion of its checkpoints makes the same one.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from drift_policy.policy_config import PolicyConfig, policy_config_from_mapping, usual_noise_scale

# Settings of the plug-in's `DriftConfig` that are read here.
SETTINGS = (
    "n_obs_steps",
    "horizon",
    "n_action_steps",
    "network",
    "network_settings",
    "head",
    "head_settings",
    "image_backbone",
    "image_backbone_settings",
    "share_image_backbone",
    "resize_shape",
    "crop_shape",
    "noise_scale",
    "num_candidates",
)


def key_of(feature: str) -> str:
    """Return how the policy calls a feature: parts of a PyTorch module cannot have dots in their names."""
    return feature.replace(".", "_")


def policy_config_of(
    settings: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int]],
    images: Collection[str],
    action_shape: Sequence[int],
) -> PolicyConfig:
    """Return the configuration of the policy inside.

    Args:
        settings: `SETTINGS` -> value; others are not read.
        inputs: observed feature -> its shape of one step.
        images: those of the features that are cameras, [channels, height, width].
        action_shape: [Da].

    Raises:
        ValueError: features that cannot be told apart, or an action that is no vector.
        ConfigurationError: a setting that is unknown or cannot work, or nothing to observe.
    """
    if len(action_shape) != 1:
        raise ValueError(f"drift needs actions of the shape [numbers], not {list(action_shape)}.")
    observations: dict[str, Any] = {}
    for feature, shape in inputs.items():
        key = key_of(feature)
        if key in observations:
            raise ValueError(f"The feature {feature!r} cannot be told from another one: rename it.")
        observations[key] = {"shape": list(shape)}
        if feature in images:
            sizes = {"crop": settings["crop_shape"], "resize": settings["resize_shape"]}
            observations[key] |= {name: list(size) if size else None for name, size in sizes.items()}
            observations[key]["kind"] = "image"
    noise_scale = settings["noise_scale"]
    return policy_config_from_mapping(
        {
            "observations": observations,
            "action_dim": action_shape[0],
            "horizon": settings["horizon"],
            "n_obs_steps": settings["n_obs_steps"],
            "n_action_steps": settings["n_action_steps"],
            "noise_scale": usual_noise_scale(settings["head"]) if noise_scale is None else noise_scale,
            "num_candidates": settings["num_candidates"],
            "network": {"name": settings["network"], **settings["network_settings"]},
            "head": {"name": settings["head"], **settings["head_settings"]},
            "image_backbone": {"name": settings["image_backbone"], **settings["image_backbone_settings"]},
            "share_image_backbone": settings["share_image_backbone"],
        }
    )
