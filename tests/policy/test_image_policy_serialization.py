"""Checkpoints and configurations of policies that see images, and of those that do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from drift_policy import Policy, build_policy, load_policy
from drift_policy.data.normalizer import Normalizer
from drift_policy.encoders import ObservationSpec
from drift_policy.encoders.backbones.resnet18 import Resnet18Config
from drift_policy.encoders.backbones.small_cnn import SmallCnnConfig
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.policy_config import PolicyConfig, policy_config_from_mapping
from drift_policy.serialization import CONFIG_FILE, MODEL_FILE
from tests.helpers.image_policies import SMALL_CNN, camera, tiny_image_policy
from tests.helpers.policies import HEAD_NAMES, tiny_config, tiny_obs, tiny_policy

OLD_CONFIG = Path(__file__).parent / "old_checkpoint" / "config.json"  # of the first pretrained Push-T policy
TWO_CAMERAS = {"front": camera(crop=[8, 9]), "wrist": camera(9, 14, resize=[10, 12], crop=[8, 9])}


def predict(policy: Policy) -> Tensor:
    return policy.predict_action(tiny_obs(policy), generator=torch.Generator().manual_seed(0))["action_pred"]


def saved_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_FILE).read_text())["policy"]


@pytest.mark.parametrize("head", HEAD_NAMES)
@pytest.mark.parametrize("share", [False, True])
def test_round_trip_is_exact(head: str, share: bool, tmp_path: Path) -> None:
    policy = tiny_image_policy(head, cameras=TWO_CAMERAS, share_image_backbone=share)
    expected = predict(policy)
    loaded = load_policy(policy.train().save_pretrained(tmp_path))
    assert not loaded.training
    assert loaded.config == policy.config
    assert len(loaded.encoder.backbones) == (1 if share else 2)
    assert torch.equal(predict(loaded), expected)


def test_a_loaded_resnet_is_laid_out_for_single_images_and_saved_as_before(tmp_path: Path) -> None:
    backbone: dict[str, Any] = {"image_backbone_name": "resnet18", "image_backbone": Resnet18Config(feature_size=4)}
    policy = tiny_image_policy(**backbone)
    loaded = load_policy(policy.save_pretrained(tmp_path / "first"))
    kernel = loaded.encoder.backbones["image"][0].weight  # type: ignore[index]  # a Sequential
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    again = loaded.save_pretrained(tmp_path / "second")
    assert (again / MODEL_FILE).read_bytes() == (tmp_path / "first" / MODEL_FILE).read_bytes()


def test_the_file_says_all_that_is_needed_of_the_images(tmp_path: Path) -> None:
    policy = tiny_image_policy(cameras=TWO_CAMERAS, share_image_backbone=True)
    values = saved_config(policy.save_pretrained(tmp_path))
    assert values["image_backbone"] == {
        "name": "small_cnn",
        "channels": [16],
        "kernel_sizes": [3],
        "strides": [2],
        "num_keypoints": 3,
        "feature_size": 4,
    }
    assert values["share_image_backbone"] is True
    expected = {"kind": "image", "shape": [3, 9, 14], "resize": [10, 12], "crop": [8, 9]}
    assert values["observations"]["wrist"] == expected


def test_weights_that_were_shared_do_not_fit_a_policy_that_shares_none(tmp_path: Path) -> None:
    folder = tiny_image_policy(cameras=TWO_CAMERAS, share_image_backbone=True).save_pretrained(tmp_path)
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["policy"]["share_image_backbone"] = False
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"backbones\..*it is of another policy") as error:
        load_policy(folder)
    assert str(folder / MODEL_FILE) in str(error.value)


def test_a_policy_without_images_does_not_mention_them(tmp_path: Path) -> None:
    folder = tiny_policy().save_pretrained(tmp_path)
    assert not {"image_backbone", "share_image_backbone"} & saved_config(folder).keys()
    assert "backbone" not in (folder / CONFIG_FILE).read_text()
    assert load_policy(folder).config == tiny_config()


def test_a_checkpoint_from_before_there_were_images_loads(tmp_path: Path) -> None:
    values = json.loads(OLD_CONFIG.read_text())["policy"]
    assert "image_backbone" not in values and all("crop" not in spec for spec in values["observations"].values())
    assert "kernel" not in values["head"] and not {"num_candidates", "mirrored"} & values.keys()
    policy = build_policy(policy_config_from_mapping(values))
    sizes = {key: (torch.zeros(1, size), torch.ones(1, size)) for key, size in policy.normalizer.sizes.items()}
    policy.set_normalizer(Normalizer.fit({key: torch.cat(ends) for key, ends in sizes.items()}))
    folder = policy.eval().save_pretrained(tmp_path)
    shutil.copy(OLD_CONFIG, folder / CONFIG_FILE)
    loaded = load_policy(folder)
    assert (loaded.config.num_candidates, loaded.config.mirrored, loaded.mirror) == (1, False, None)
    obs = {
        key: torch.full((1, loaded.n_obs_steps, *spec.shape), 0.5) for key, spec in loaded.config.observations.items()
    }
    noise = torch.randn(1, loaded.horizon, loaded.action_dim)
    expected = policy.predict_action(obs, noise=noise)["action"]
    assert torch.equal(loaded.predict_action(obs, noise=noise)["action"], expected) and bool(expected.isfinite().all())


def mapping(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "action_dim": 2,
        "observations": {"image": {"kind": "image", "shape": [3, 96, 96], "crop": [84, 84]}, "pose": {"shape": [2]}},
        "head": {"name": "drift"},
        "network": {"name": "mlp"},
    }
    return values | changes


def test_left_out_settings_are_diffusion_policys() -> None:
    config = policy_config_from_mapping(mapping())
    assert config.image_backbone_name == "resnet18" and not config.share_image_backbone
    assert config.image_backbone == Resnet18Config(num_keypoints=32, feature_size=64)
    assert config.has_images and not tiny_config().has_images
    assert policy_config_from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


def test_settings_of_the_images_are_read() -> None:
    backbone = {"name": "small_cnn", "channels": [16], "kernel_sizes": [3], "strides": [2], "feature_size": 4}
    config = policy_config_from_mapping(mapping(image_backbone=backbone, share_image_backbone=True))
    assert config == PolicyConfig(
        action_dim=2,
        observations={
            "image": ObservationSpec(kind="image", shape=[3, 96, 96], crop=[84, 84]),
            "pose": ObservationSpec(shape=[2]),
        },
        image_backbone_name="small_cnn",
        image_backbone=SmallCnnConfig(channels=[16], kernel_sizes=[3], strides=[2], feature_size=4),
        share_image_backbone=True,
    )


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (
            r"'resnet50' is unknown: expected one of \['resnet18', 'small_cnn'\]",
            {"image_backbone": {"name": "resnet50"}},
        ),
        (r"policy\.image_backbone\.name has no value", {"image_backbone": {"feature_size": 8}}),
        (
            r"policy\.image_backbone\.feature_siz does not exist; did you mean feature_size",
            {"image_backbone": {"name": "resnet18", "feature_siz": 8}},
        ),
        (r"feature_size must be at least 1, but is 0", {"image_backbone": {"name": "resnet18", "feature_size": 0}}),
        (r"policy\.share_image_backbone must be true or false, but is 'yes'", {"share_image_backbone": "yes"}),
        (r"policy\.share_image_backbone must be true or false, but is 1", {"share_image_backbone": 1}),
        (
            r"crop of \[97, 97\] does not fit",
            {"observations": {"image": {"kind": "image", "shape": [3, 96, 96], "crop": [97, 97]}}},
        ),
        (
            r"policy\.observations\.image\.crop does not fit",
            {"observations": {"image": {"kind": "image", "shape": [3, 96, 96], "crop": "small"}}},
        ),
        (r"The channels come first", {"observations": {"image": {"kind": "image", "shape": [96, 96, 3]}}}),
        (r"not \[3, 96, 96\]", {"observations": {"image": {"shape": [3, 96, 96]}}}),
    ],
)
def test_a_wrong_mapping_is_named(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        policy_config_from_mapping(mapping(**changes))


def test_the_settings_must_be_those_of_the_backbone() -> None:
    with pytest.raises(
        ConfigurationError, match="image_backbone 'resnet18' needs a Resnet18Config, but has a SmallCnn"
    ):
        tiny_config(image_backbone=SMALL_CNN)
