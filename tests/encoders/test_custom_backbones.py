"""Image backbones of the user: registered, trained, saved and loaded like the ones that are there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drift_policy import load_policy
from drift_policy.encoders import IMAGE_BACKBONES, ObservationEncoder, register_image_backbone
from drift_policy.encoders.backbones import BackboneKind, backbone_kind
from drift_policy.encoders.image import feature_size
from drift_policy.errors import CheckpointError, ConfigurationError
from drift_policy.policy_config import policy_config_from_mapping
from tests.helpers.image_policies import CROPPED, Pixels, PixelsConfig, camera, tiny_image_policy
from tests.helpers.policies import tiny_batch, tiny_obs

B, G = 3, 4


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Register "pixels", and leave the table of backbones as it was."""
    before = dict(IMAGE_BACKBONES)
    register_image_backbone("pixels", PixelsConfig, Pixels)
    yield
    IMAGE_BACKBONES.clear()
    IMAGE_BACKBONES.update(before)


def pixels_policy(**settings: Any) -> Any:
    return tiny_image_policy(image_backbone_name="pixels", image_backbone=PixelsConfig(factor=0.5), **settings)


def test_it_trains_and_predicts() -> None:
    policy = pixels_policy()
    assert isinstance(policy.encoder.backbones["image"], Pixels)
    assert policy.encoder.output_size == policy.n_obs_steps * (3 * 8 * 9 + 2)
    policy.train().compute_loss(tiny_batch(policy))[0].backward()
    assert policy.encoder.backbones["image"].factor.grad != 0
    assert policy.sample_actions(tiny_obs(policy), G).shape == (B, G, policy.horizon, policy.action_dim)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = pixels_policy()
    loaded = load_policy(policy.save_pretrained(tmp_path))
    assert loaded.config.image_backbone == PixelsConfig(factor=0.5)
    obs = tiny_obs(policy)
    expected = policy.predict_action(obs, noise_scale=0.0)["action_pred"]
    assert torch.equal(loaded.predict_action(obs, noise_scale=0.0)["action_pred"], expected)


def test_a_checkpoint_whose_backbone_is_not_registered_says_what_to_do(tmp_path: Path) -> None:
    folder = pixels_policy().save_pretrained(tmp_path)
    del IMAGE_BACKBONES["pixels"]
    with pytest.raises(CheckpointError, match=r"'pixels' is unknown: .*resnet18.*import the module that registers it"):
        load_policy(folder)


def test_its_settings_come_from_the_configuration() -> None:
    values: dict[str, Any] = {
        "action_dim": 2,
        "observations": {"image": {"kind": "image", "shape": [3, 10, 12]}},
        "head": {"name": "drift"},
        "network": {"name": "mlp"},
    }
    config = policy_config_from_mapping(values | {"image_backbone": {"name": "pixels", "factor": 2}})
    assert config.image_backbone == PixelsConfig(factor=2.0)
    with pytest.raises(ConfigurationError, match=r"policy\.image_backbone\.factr does not exist; did you mean factor"):
        policy_config_from_mapping(values | {"image_backbone": {"name": "pixels", "factr": 2}})


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'resnet50' is unknown: expected one of \['pixels', 'resnet18', "):
        backbone_kind("resnet50")
    assert backbone_kind("pixels") == BackboneKind(PixelsConfig, Pixels)


@pytest.mark.parametrize("name", ["resnet18", "small_cnn", "pixels"])
def test_a_taken_name_is_refused(name: str) -> None:
    before = IMAGE_BACKBONES[name]
    with pytest.raises(ConfigurationError, match=f"called '{name}' exists already: choose another name"):
        register_image_backbone(name, PixelsConfig, lambda config, channels, height, width: nn.Flatten())
    assert IMAGE_BACKBONES[name] == before


def test_the_same_backbone_may_be_registered_again() -> None:
    register_image_backbone("pixels", PixelsConfig, Pixels)
    assert IMAGE_BACKBONES["pixels"] == BackboneKind(PixelsConfig, Pixels)


class Answer(nn.Module):
    """A backbone that answers with any function of the images."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: images, r"must return one vector an image, \[N, F\], but returned \[2, 3, 8, 9\] for 2 images"),
        (lambda images: images.flatten(), r"but returned \[432\] for 2 images"),
        (lambda images: images.flatten(1).mean(dim=0, keepdim=True), r"but returned \[1, 216\] for 2 images"),
        (lambda images: (images.flatten(1), None), "but returned tuple for 2 images"),
        (lambda images: images @ torch.zeros(5, 5), r"cannot read images \[3, 8, 9\]: "),
    ],
)
def test_a_wrong_output_is_named(answer: Callable[[Tensor], Any], message: str) -> None:
    kind = BackboneKind(PixelsConfig, lambda config, channels, height, width: Answer(answer))
    with pytest.raises(ConfigurationError, match=message):
        ObservationEncoder({"image": CROPPED}, 2, kind, PixelsConfig())


@pytest.mark.parametrize("training", [False, True])
def test_finding_the_number_of_features_changes_nothing(training: bool) -> None:
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten()).train(training)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert feature_size(backbone, camera(10, 12)) == 3 * 10 * 12
    assert all(module.training == training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
