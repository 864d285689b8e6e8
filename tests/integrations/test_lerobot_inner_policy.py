"""What the settings of LeRobot's policy type say about the policy inside."""

from typing import Any

import pytest

from drift_policy.integrations.lerobot.inner_policy import policy_config_of
from drift_policy.policy_config import PolicyConfig

SETTINGS: dict[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 3,
    "network": "mlp",
    "network_settings": {"width": 16, "depth": 1},
    "head": "drift",
    "head_settings": {"kernel": "energy"},
    "image_backbone": "small_cnn",
    "image_backbone_settings": {"num_keypoints": 8},
    "share_image_backbone": True,
    "resize_shape": [40, 30],
    "crop_shape": [32, 28],
    "noise_scale": None,
    "num_candidates": 4,
}
STATE, IMAGE = "observation.state", "observation.images.top"


def made(**changed: Any) -> PolicyConfig:
    return policy_config_of(SETTINGS | changed, {STATE: [4], IMAGE: [3, 48, 64]}, [IMAGE], [3])


def test_every_setting_reaches_the_policy() -> None:
    config = made()
    sizes = (config.action_dim, config.n_obs_steps, config.horizon, config.n_action_steps, config.num_candidates)
    assert sizes == (3, 2, 8, 3, 4)
    assert (config.head_name, config.head.kernel) == ("drift", "energy")
    assert (config.network_name, config.network.width) == ("mlp", 16)
    assert (config.image_backbone_name, config.image_backbone.num_keypoints) == ("small_cnn", 8)
    assert config.share_image_backbone
    state, image = config.observations["observation_state"], config.observations["observation_images_top"]
    assert (state.kind, list(state.shape), state.crop, state.resize) == ("state", [4], None, None)
    assert (image.kind, list(image.shape)) == ("image", [3, 48, 64])
    assert (image.resize, image.crop) == ([40, 30], [32, 28])


@pytest.mark.parametrize(
    ("head", "given", "expected"), [("drift", None, 0.5), ("drift", 0.0, 0.0), ("drift", 0.7, 0.7), ("flow", None, 1.0)]
)
def test_noise_is_what_was_given_also_none_at_all_or_else_what_is_usual(
    head: str, given: float | None, expected: float
) -> None:
    assert made(head=head, head_settings={}, noise_scale=given).noise_scale == expected


def test_features_that_become_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'observation_state' cannot be told from another one"):
        policy_config_of(SETTINGS, {STATE: [4], "observation_state": [4]}, [], [3])
